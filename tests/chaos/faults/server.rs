//! The database server restarts, crashes or stands still under its pods. Nobody has died: every lock is free, or every
//! session silent, at once.

use std::time::Duration;

use podlock::throwaway::Server;
use rustix::process::{Pid, Signal, kill_process};

use crate::checker::Excused;
use crate::history::Said;
use crate::patience::SOON;
use crate::pod::now_ns;
use crate::scenario::Scenario;
use crate::world::{Figure, World, connect, eventually, slack};

const PODS: [&str; 3] = ["a", "b", "c"];
/// What a lease tolerates must be more than a restart takes on a loaded machine.
const LEASE: Duration = Duration::from_secs(8);
/// How often a scenario is tried that a busy machine can keep from showing anything.
const TRIES: u32 = 3;
const BUSY: &str = "this machine is too busy to restart a server within what is tolerated: nothing was shown";

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("server::fast_restart", &[], fast_restart)
            .promises("Nobody is buried and no run is disturbed, if it is shorter than `outage_tolerated`."),
        Scenario::new("server::immediate_restart", &[], immediate_restart).promises("The same."),
        Scenario::new("server::kill_9_of_the_postmaster", &[], kill_9_of_the_postmaster).promises("The same."),
        Scenario::new("server::kill_9_of_one_backend", &[], kill_9_of_one_backend)
            .promises("The server resets itself, which ends every session: the same."),
        Scenario::new("server::a_pod_dies_while_the_server_restarts", &[], a_pod_dies_meanwhile)
            .promises("The dead one is told from those that only lost their sessions; they lose nothing."),
        Scenario::new("server::paused_for_a_moment", &[], paused_for_a_moment).promises("Nobody notices."),
        Scenario::new("server::paused_for_longer_than_the_lease", &[], paused_for_long).promises(
            "Every pod tells its runs to stop in time; when the server goes on each registers anew, and \
                 every run goes on once.",
        ),
    ]
}

async fn fast_restart() -> Vec<Figure> {
    disturbs_nobody(own, async |world, ()| world.server.suffers(Server::restart_fast).await).await
}

async fn immediate_restart() -> Vec<Figure> {
    disturbs_nobody(own, async |world, ()| world.server.suffers(Server::restart_immediate).await).await
}

async fn kill_9_of_the_postmaster() -> Vec<Figure> {
    disturbs_nobody(own, async |world, ()| {
        world.server.suffers(Server::kill_postmaster).await;
        world.server.suffers(Server::start_again).await;
    })
    .await
}

/// SIGKILL ends a backend that is not podlock's. The server cannot know what that backend left in the shared memory, so
/// it ends all other backends and recovers.
async fn kill_9_of_one_backend() -> Vec<Figure> {
    disturbs_nobody(own, async |world, ()| {
        let stranger = connect(&world.server.socket_url(&world.database)).await;
        let pid: i32 = stranger.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).expect("killed");
        eventually(SOON, "the server resets itself", async || {
            let log = world.server.log_text().unwrap();
            let has_reset = log.contains("all server processes terminated; reinitializing");
            if has_reset { Ok(()) } else { Err("its log does not say so".to_owned()) }
        })
        .await;
    })
    .await
}

/// As a machine whose disk hangs: every connection stands, and nothing answers.
async fn paused_for_a_moment() -> Vec<Figure> {
    disturbs_nobody(own, async |world, ()| {
        world.server.suffers(Server::pause).await;
        tokio::time::sleep(world.worst_case().outage_tolerated.mul_f64(0.8)).await;
        world.server.suffers(Server::resume).await;
    })
    .await
}

async fn own() -> (World, ()) {
    (World::own(&[]).await, ())
}

/// Three settled pods with runs that go on long enough for a wrong burial to come, when the pods are settled again.
async fn populate(world: &mut World) {
    world.lease = LEASE;
    world.settled(&PODS).await;
    for pod in PODS {
        world.start(pod, 2, 280, 50).await;
    }
}

/// An outage that is shorter than what is tolerated: each pod is what it was and has the runs that it had.
pub(super) async fn disturbs_nobody<T>(
    made: impl AsyncFn() -> (World, T),
    outage: impl AsyncFn(&World, &T),
) -> Vec<Figure> {
    for _ in 0..TRIES {
        let (mut world, with) = made().await;
        populate(&mut world).await;
        let tolerated = world.worst_case().outage_tolerated;
        let began = now_ns();
        outage(&world, &with).await;
        world.reconnect().await;
        let ended = now_ns();
        if Duration::from_nanos(ended - began) > tolerated {
            continue;
        }
        let back = world.whole(&PODS, SOON).await;
        let returned = |s: &Said| s.t > began && s.what.as_deref() == Some("returned");
        world.each(&PODS, "it lost its session and came back", SOON, returned).await;
        world.figure("outage", began, ended, Some(tolerated));
        let bound = world.worst_case().silent_pod_stops;
        world.figure("until all hold their locks again", began, back, Some(bound));
        world.all_runs_ended(SOON).await;
        assert_eq!(world.takeovers().await, 0, "every run stayed where it was");
        assert_eq!(world.roster().await, PODS);
        assert_eq!(world.reasons().await, [], "every pod is what it was");
        world.whole(&PODS, SOON).await;
        for pod in PODS {
            assert!(world.process(pod).is_running(), "pod {pod} has ended");
        }
        return world.conclude(&Excused::default()).await;
    }
    panic!("{BUSY}");
}

/// The dead one is told from those that only lost their sessions, and they lose nothing.
async fn a_pod_dies_meanwhile() -> Vec<Figure> {
    for _ in 0..TRIES {
        let mut world = World::own(&[]).await;
        populate(&mut world).await;
        let (restarted, tolerated) = (world.worst_case().database_restarted, world.worst_case().outage_tolerated);
        let began = now_ns();
        world.server.suffers(Server::stop).await;
        world.kill("c").await;
        world.server.suffers(Server::start_again).await;
        world.reconnect().await;
        let up = now_ns();
        if Duration::from_nanos(up - began) > tolerated {
            continue;
        }
        let buried = world.buried("c", up, restarted + slack()).await;
        let resumed = world.resumed(up, SOON).await;
        world.figure("outage", began, up, Some(tolerated));
        world.figure("buried, from the server's return", up, buried, Some(restarted));
        world.figure("first run goes on, from the server's return", up, resumed, Some(restarted));
        assert_eq!(world.reasons().await, [("c".to_owned(), "lost".to_owned())]);
        return world.conclude(&Excused::ended(&["c"])).await;
    }
    panic!("{BUSY}");
}

/// Every pod tells its runs to stop before the server could have freed its lock. When the server answers again each
/// registers anew, and every run goes on once.
async fn paused_for_long() -> Vec<Figure> {
    let mut world = World::own(&[]).await;
    world.settled(&PODS).await;
    for pod in PODS {
        // Without a pause: some of their writes are under way, whenever it is.
        world.start(pod, 2, 1500, 0).await;
    }
    let began = now_ns();
    world.server.suffers(Server::pause).await;
    let stops = world.worst_case().silent_pod_stops;
    let told = |s: &Said| s.t > began && s.what.as_deref() == Some("self_fenced");
    let told = world.each(&PODS, "it told its runs to stop", stops + slack(), told).await;
    world.figure("all runs are told to stop", began, told, Some(stops));
    let over = (world.lease * 3 / 2).saturating_sub(Duration::from_nanos(now_ns() - began));
    tokio::time::sleep(over).await;
    let up = now_ns();
    world.server.suffers(Server::resume).await;
    let resumed = world.resumed(up, SOON).await;
    let whole = world.whole(&PODS, SOON).await;
    world.figure("first run goes on, from the server's return", up, resumed, None);
    world.figure("until all hold their locks again, from the server's return", up, whole, None);
    world.all_runs_ended(SOON).await;
    assert_eq!(world.roster().await, PODS);
    let ends = world.reasons().await;
    assert!(ends.iter().all(|(_, reason)| reason == "detached"), "nobody died: {ends:?}");
    world.conclude(&Excused::ended(&PODS)).await
}
