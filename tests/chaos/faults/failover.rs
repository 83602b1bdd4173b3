//! The primary is lost, and a standby takes its place. Pods are given both hosts.

use std::time::Duration;

use podlock::throwaway::Server;

use super::limits::busy;
use crate::checker::{Excused, Missing, Rule, check};
use crate::history::{self, Said};
use crate::patience::SOON;
use crate::pod::{Input, Order, now_ns};
use crate::process;
use crate::scenario::Scenario;
use crate::standby::Standby;
use crate::world::{self, Figure, World, slack};

const PODS: [&str; 3] = ["a", "b", "c"];
/// What it tolerates must be more than a promotion takes on a loaded machine.
const LEASE: Duration = Duration::from_secs(8);
/// How late the answers of a synchronous standby are.
const LATE: Duration = Duration::from_millis(150);
/// How often a scenario is tried that a busy machine can keep from showing anything.
const TRIES: u32 = 3;
const BUSY: &str = "this machine is too busy to promote a standby within what is tolerated: nothing was shown";
/// More than a sequence is written down ahead of itself.
const MORE_THAN_A_SEQUENCE_IS_AHEAD: u32 = 40;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("failover::promotion_of_a_standby_that_is_up_to_date", &[], up_to_date).promises(
            "Pods that name both hosts find the new primary by themselves; nothing is lost and nobody is \
                 disturbed.",
        ),
        Scenario::new("failover::promotion_amid_grouped_writes", &[], amid_groups).alone().promises(
            "Each pod has more writes than connections, and groups them. What was sent and got no reply is \
                 repeated; nothing is lost or made twice.",
        ),
        Scenario::new("failover::promotion_of_a_standby_that_lags", &[], lags).promises(
            "Confirmed writes are gone, fences too. Every pod goes on by what the database now says, and \
                 every run that it has ends once; a pod that was buried is buried again.",
        ),
        Scenario::new("failover::the_standby_hangs", &[], standby_hangs).promises(
            "Commits wait for a synchronous standby for longer than the lease: nobody is buried for it, and \
                 a dead pod is when commits end again.",
        ),
        Scenario::new("failover::the_standby_answers_late", &[], standby_is_late)
            .promises("A synchronous standby answers up to 150 ms late: burials take as much longer."),
        Scenario::new("failover::the_primary_dies_while_the_standby_hangs", &[], primary_dies_meanwhile).promises(
            "What was written and never confirmed is there again with the primary; no pod was told that it \
                 was not written.",
        ),
        Scenario::new("failover::the_old_primary_is_still_up", &[], old_primary_still_up).promises(
            "On each of the two databases the laws hold. Who was on the old one finds itself buried on the \
                 new one. Fencing the old primary is the task of whoever promotes.",
        ),
    ]
}

/// A primary with a standby that follows, and settled pods that know of both.
async fn fleet(lease: Duration) -> (World, Standby) {
    let mut world = World::own(&[]).await;
    world.lease = lease;
    let standby = Standby::of(&world.server).await;
    world.url = world.url_of([world.server.port(), standby.port()]);
    world.settled(&PODS).await;
    (world, standby)
}

/// From now on nothing is confirmed that the standby does not have.
async fn commits_wait_for_the_standby(world: &World) {
    for setting in ["ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"] {
        world.admin.batch_execute(setting).await.expect("set");
    }
    world
        .until(SOON, "the standby is synchronous", async |client| {
            let sql = "SELECT sync_state FROM pg_stat_replication";
            let state: String = client.query_one(sql, &[]).await.map_err(|e| e.to_string())?.get(0);
            if state == "sync" { Ok(()) } else { Err(state) }
        })
        .await;
}

/// Waits until `count` transactions have done all but hear of the standby.
async fn waits_for_the_standby(world: &World, count: i64) {
    world
        .until(SOON, "commits wait for the standby", async |client| {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            let waiting: i64 = client.query_one(sql, &[]).await.map_err(|e| e.to_string())?.get(0);
            if waiting >= count { Ok(()) } else { Err(format!("{waiting} of {count}")) }
        })
        .await;
}

/// Kills the primary and promotes the standby. `None`: that took longer than this lease tolerates.
async fn fail_over(world: &mut World, standby: &Standby) -> Option<(u64, u64)> {
    let began = now_ns();
    world.server.suffers(Server::kill_postmaster).await;
    standby.promote().await;
    world.moves_to(standby.socket_url(&world.database)).await;
    let promoted = now_ns();
    let tolerated = world.worst_case().outage_tolerated;
    (Duration::from_nanos(promoted - began) <= tolerated).then_some((began, promoted))
}

/// A synchronous standby has all that was ever confirmed: nothing is lost, and nobody is disturbed.
async fn up_to_date() -> Vec<Figure> {
    promoted_under(async |world| {
        for pod in PODS {
            world.start(pod, 2, 280, 50).await;
        }
    })
    .await
}

/// A standby that is up to date is promoted, while each pod has three times as many runs that write as connections.
async fn amid_groups() -> Vec<Figure> {
    promoted_under(async |world| {
        for pod in PODS {
            world.start(pod, 12, 1000, 2).await;
        }
        world
            .until(SOON, "a group of checkpoints is under way", async |client| {
                let sql = "SELECT count(*) FROM pg_stat_activity
                            WHERE query LIKE '%writes AS MATERIALIZED%w.checkpoint%' AND state = 'active'
                              AND pid <> pg_backend_pid()";
                let groups: i64 = client.query_one(sql, &[]).await.map_err(|e| e.to_string())?.get(0);
                if groups > 0 { Ok(()) } else { Err("none".to_owned()) }
            })
            .await;
    })
    .await
}

/// Promotes a standby that is up to date under this load. Nothing is lost, and nobody is disturbed.
async fn promoted_under(load: impl AsyncFn(&mut World)) -> Vec<Figure> {
    for _ in 0..TRIES {
        let (mut world, standby) = fleet(LEASE).await;
        commits_wait_for_the_standby(&world).await;
        load(&mut world).await;
        let Some((began, promoted)) = fail_over(&mut world, &standby).await else { continue };
        let sql = "SELECT count(*) FROM studio_runs WHERE state = 'running'";
        let running: i64 = world.admin.query_one(sql, &[]).await.expect("a count").get(0);
        assert!(running > 0, "no run was under way");
        let worst = world.worst_case();
        let back = world.whole(&PODS, SOON).await;
        world.figure("until the standby takes writes", began, promoted, Some(worst.outage_tolerated));
        world.figure("until all hold their locks again", began, back, Some(worst.silent_pod_stops));
        world.all_runs_ended(SOON).await;
        assert_eq!(world.takeovers().await, 0, "every run stayed where it was");
        assert_eq!(world.roster().await, PODS);
        assert_eq!(world.reasons().await, [], "every pod is what it was");
        return world.conclude(&Excused::default()).await;
    }
    panic!("{BUSY}");
}

/// What was committed at last is gone: steps, ends, starts, a burial with its claims, a registration, fences. Every pod
/// goes on by what the database now says, and every run that it has ends once.
async fn lags() -> Vec<Figure> {
    for _ in 0..TRIES {
        let (mut world, standby) = fleet(LEASE).await;
        for pod in PODS {
            world.start(pod, 2, 350, 40).await;
        }
        world.start("a", 2, 40, 40).await;
        standby.stops_following().await;
        // A few more of them begin than can be told by their count, which is all the same.
        world.start("a", MORE_THAN_A_SEQUENCE_IS_AHEAD, 100, 40).await;
        let killed = world.kill("c").await;
        world.buried("c", killed, SOON).await;
        world.resumed(killed, SOON).await;
        world.pod("d").await;
        world
            .until(SOON, "the short runs have ended", async |client| {
                let sql = "SELECT count(*) FROM studio_runs WHERE state = 'succeeded'";
                let ended: i64 = client.query_one(sql, &[]).await.map_err(|e| e.to_string())?.get(0);
                if ended >= 2 { Ok(()) } else { Err(format!("{ended}")) }
            })
            .await;
        let Some((began, promoted)) = fail_over(&mut world, &standby).await else { continue };
        let worst = world.worst_case();
        let lost = world.missing().await;
        let steps = lost.iter().filter(|m| **m != Missing::Start).count();
        assert!(steps > 0 && lost.len() > steps, "no confirmed step, or no start, is missing: the standby did not lag");
        assert!(world.roster().await.contains(&"c".to_owned()), "the dead one is back in the roster");
        let gone = |s: &Said| s.t > began && s.what.as_deref() == Some("self_fenced");
        world.each(&["d"], "its registration is gone", SOON, gone).await;
        let back = world.whole(&["a", "b", "d"], SOON).await;
        world.figure("until the standby takes writes", began, promoted, Some(worst.outage_tolerated));
        world.figure("until all hold their locks again", began, back, Some(worst.silent_pod_stops));
        let more = Order::Start { count: 5, input: Input { steps: 10, pause_ms: 20 } };
        world.process("a").order(&more).await;
        world.each(&["a"], "it starts runs", SOON, |s: &Said| s.t > promoted && s.ev == "began").await;
        let buried = world.buried("c", promoted, worst.database_restarted + slack()).await;
        world.figure(
            "a dead pod is buried again, from the promotion",
            promoted,
            buried,
            Some(worst.database_restarted),
        );
        world.all_runs_ended(SOON).await;
        assert_eq!(world.roster().await, ["a", "b", "d"]);
        assert_eq!(world.reasons().await, [("c".to_owned(), "lost".to_owned())]);
        return world.conclude(&Excused::ended(&["c"]).lost_writes()).await;
    }
    panic!("{BUSY}");
}

/// A synchronous standby stands still for longer than the lease, and so does every commit. Nobody is buried for it, and
/// a pod that dies meanwhile is when commits end again.
async fn standby_hangs() -> Vec<Figure> {
    let (mut world, standby) = fleet(world::LEASE).await;
    for pod in PODS {
        world.start(pod, 3, 100, 40).await;
    }
    commits_wait_for_the_standby(&world).await;
    let receiver = standby.hangs().await;
    waits_for_the_standby(&world, 3).await;
    let killed = world.kill("c").await;
    tokio::time::sleep(world.lease * 2).await;
    assert_eq!(world.roster().await, PODS, "nothing can be committed");
    let goes_on = now_ns();
    receiver.goes_on();
    let bound = world.worst_case().process_killed;
    let buried = world.buried("c", killed, bound + slack()).await;
    let resumed = world.resumed(killed, SOON).await;
    world.figure("buried, from when commits end", goes_on, buried, Some(bound));
    world.figure("first run goes on, from when commits end", goes_on, resumed, Some(bound));
    world.all_runs_ended(SOON).await;
    world.whole(&["a", "b"], SOON).await;
    assert_eq!(world.reasons().await, [("c".to_owned(), "lost".to_owned())]);
    world.conclude(&Excused::ended(&["c"])).await
}

/// A synchronous standby stands still for 150 ms again and again, and commits wait for it. Deaths are pushed all the same.
async fn standby_is_late() -> Vec<Figure> {
    let mut world = World::own(&[]).await;
    let standby = Standby::of(&world.server).await;
    world.settled(&busy::PODS).await;
    commits_wait_for_the_standby(&world).await;
    let is_late = tokio::spawn(async move {
        loop {
            let receiver = standby.hangs().await;
            tokio::time::sleep(LATE).await;
            receiver.goes_on();
            tokio::time::sleep(LATE / 3).await;
        }
    });
    let figures = busy::dies_one_by_one(world).await;
    assert!(!is_late.is_finished(), "it was late to the end");
    is_late.abort();
    figures
}

/// What was written and never confirmed is there when the primary is back, long after the pods gave their runs up. No
/// pod may have been told that it was not written.
async fn primary_dies_meanwhile() -> Vec<Figure> {
    let (mut world, standby) = fleet(world::LEASE).await;
    for pod in PODS {
        world.start(pod, 3, 200, 20).await;
    }
    commits_wait_for_the_standby(&world).await;
    let receiver = standby.hangs().await;
    waits_for_the_standby(&world, 6).await;
    let start = Order::Start { count: 1, input: Input { steps: 10, pause_ms: 20 } };
    for pod in PODS {
        world.process(pod).order(&start).await;
    }
    waits_for_the_standby(&world, 9).await;
    let began = now_ns();
    world.server.suffers(Server::kill_postmaster).await;
    let stops = world.worst_case().silent_pod_stops;
    let told = |s: &Said| s.t > began && s.what.as_deref() == Some("self_fenced");
    let told = world.each(&PODS, "it told its runs to stop", stops + slack(), told).await;
    world.figure("all runs are told to stop", began, told, Some(stops));
    receiver.goes_on();
    world.server.suffers(Server::start_again).await;
    let up = now_ns();
    world.reconnect().await;
    let whole = world.whole(&PODS, SOON).await;
    world.figure("until all hold their locks again, from the server's return", up, whole, None);
    world.all_runs_ended(SOON).await;
    let ends = world.reasons().await;
    assert!(ends.iter().all(|(_, reason)| reason != "lost"), "nobody died: {ends:?}");
    world.conclude(&Excused::ended(&PODS)).await
}

/// Two primaries at once. Whoever is connected to the old one cannot know of the new one, where it is buried for dead:
/// both compute, and each of the two databases accepts what it must by its own roster. When the old one has ended,
/// those that were on it find themselves buried.
async fn old_primary_still_up() -> Vec<Figure> {
    let (mut world, standby) = fleet(world::LEASE).await;
    for pod in PODS {
        world.start(pod, 2, 400, 40).await;
    }
    standby.promote().await;
    let promoted = now_ns();
    world.start("a", 2, 50, 40).await;
    let new_first = world.url_of([standby.port(), world.server.port()]);
    world.pod_by("d", process::command(&[], "d", &new_first, world.lease)).await;
    for pod in PODS {
        world.buried(pod, promoted, SOON).await;
    }
    let resumed = world.resumed(promoted, SOON).await;
    for pod in PODS {
        world.process(pod).heard("it goes on", SOON, |s| (s.t > resumed && s.ev == "ok").then_some(())).await;
    }
    let ended = now_ns();
    let old = world.server.clone();
    old.suffers(Server::kill_postmaster).await;
    world.moves_to(standby.socket_url(&world.database)).await;
    let told = |s: &Said| s.t > ended && s.what.as_deref() == Some("self_fenced");
    let told = world.each(&PODS, "it gave its runs up", SOON, told).await;
    let whole = world.whole(&["a", "b", "c", "d"], SOON).await;
    world.figure("their runs are told to stop, from the old one's end", ended, told, None);
    world.figure("all are on the new one, from the old one's end", ended, whole, None);
    world.all_runs_ended(SOON).await;
    let ends = world.reasons().await;
    assert_eq!(ends, PODS.map(|pod| (pod.to_owned(), "lost".to_owned())));
    let (logs, database) = (world.logs(), world.database.clone());
    let split = Excused::ended(&PODS).overlap(&PODS).lost_writes();
    let figures = world.conclude(&split).await;
    // The old one's history goes up to its end, with runs that have not ended; of a pod that dies it knows nothing.
    old.suffers(Server::start_again).await;
    let client = world::connect(&old.socket_url(&database)).await;
    let undisturbed = Excused { ended: [].into(), ..split };
    // No pod of this scenario has workers.
    let mut found = check(&history::load(&client).await, &logs, &undisturbed, Duration::MAX);
    found.retain(|violation| violation.rule != Rule::NoneForgotten);
    assert!(found.is_empty(), "the old primary's history breaks the laws: {found:#?}");
    figures
}
