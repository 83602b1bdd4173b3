//! What becomes of the workers that pods have registered. Each pod keeps a copy of all workers, and says all the time what
//! the copy shows; the checker holds that to the roster.

use std::time::{Duration, Instant};

use podlock::throwaway::Server;
use rustix::process::{Pid, Signal, kill_process};

use crate::checker::Excused;
use crate::patience::SOON;
use crate::pod::{Order, now_ns};
use crate::scenario::Scenario;
use crate::workers::Workers;
use crate::world::{Figure, World, slack};

const PODS: [&str; 3] = ["a", "b", "c"];
const OTHERS: [&str; 2] = ["b", "c"];
/// Of the pod that something is done to.
const MANY: u32 = 1000;
/// Of each other pod.
const FEW: u32 = 10;
/// Replicas sleep, and hear of a change by a notification alone.
const NEVER: Duration = Duration::ZERO;
/// A pod that wakes has something to publish.
const OFTEN: Duration = Duration::from_secs(1);
/// A pod always has a write under way, or soon.
const ALWAYS: Duration = Duration::from_millis(50);

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("workers::the_owner_of_1000_is_killed", &[], owner_is_killed)
            .promises("No survivor shows one of its workers once it is buried."),
        Scenario::new("workers::the_owner_of_1000_is_stopped_longer_than_the_lease", &[], owner_is_stopped).promises(
            "Woken, it publishes nothing as the pod that it was. It registers anew, and all its workers are shown again.",
        ),
        Scenario::new("workers::a_write_arrives_after_the_burial", &[], write_is_late)
            .promises("The server executes what the pod has sent only after its burial: it is refused."),
        Scenario::new("workers::every_notification_is_lost", &[], notifications_are_lost)
            .promises("The next comparison finds what has changed."),
        Scenario::new("workers::the_server_restarts", &[], server_restarts)
            .promises("No replica hides a worker; what was registered meanwhile is published afterwards."),
    ]
}

/// Three settled pods, of which a has many workers, and runs on b. Of each pod, one worker changes every so often.
async fn settled(mut world: World, changes: Duration) -> (World, String) {
    for (pod, count) in PODS.into_iter().zip([MANY, FEW, FEW]) {
        world.workers = Some(Workers { count, changes });
        let command = world.command(pod);
        world.spawn(pod, command);
    }
    let mut incarnations = Vec::new();
    for pod in PODS {
        incarnations.push(world.pods[pod].ready(SOON).await);
    }
    let began = now_ns();
    for (owner, workers) in incarnations.iter().zip([MANY, FEW, FEW]) {
        world.show(&PODS, owner, workers, began, SOON).await;
    }
    world.settle().await;
    world.start("b", 2, 40, 25).await;
    (world, incarnations.swap_remove(0))
}

async fn owner_is_killed() -> Vec<Figure> {
    let (mut world, owner) = settled(World::shared().await, NEVER).await;
    let bound = world.worst_case().process_killed;
    let killed = world.kill("a").await;
    let buried = world.buried("a", killed, bound + slack()).await;
    world.figure("buried", killed, buried, Some(bound));
    let gone = world.show(&OTHERS, &owner, 0, killed, SOON).await;
    world.figure("none of its workers is shown", killed, gone, Some(bound + world.comparison_bound()));
    world.conclude(&Excused::ended(&["a"])).await
}

async fn owner_is_stopped() -> Vec<Figure> {
    let (mut world, owner) = settled(World::shared().await, OFTEN).await;
    let bound = world.worst_case().frozen;
    let at = now_ns();
    world.process("a").freeze().await;
    let buried = world.buried("a", at, bound + slack()).await;
    world.figure("buried", at, buried, Some(bound));
    let gone = world.show(&OTHERS, &owner, 0, at, SOON).await;
    world.figure("none of its workers is shown", at, gone, Some(bound + world.comparison_bound()));
    let woken = now_ns();
    world.process("a").thaw();
    let rejoined = world.joined("a", woken, SOON).await;
    world.figure("woken, registered anew", woken, rejoined, None);
    let again = world.status("a").await.expect("it is in the roster").incarnation;
    assert_ne!(again, owner);
    let shown = world.show(&PODS, &again, MANY, woken, SOON).await;
    world.figure("all its workers are shown again", woken, shown, None);
    // A change was overdue when it woke. The checker finds no row that was written under the former incarnation.
    world.conclude(&Excused::ended(&["a"]).overlap(&["a"])).await
}

/// The backends that carry the writes of pod a stand still, so what the pod publishes waits in their sockets. The pod is
/// stopped as well, and buried. Then the backends go on, and execute what waits.
async fn write_is_late() -> Vec<Figure> {
    let (mut world, owner) = settled(World::own(&[]).await, ALWAYS).await;
    let backends = stopped_at_rest(&world, "a").await;
    tokio::time::sleep(ALWAYS * 4).await;
    let bound = world.worst_case().frozen;
    let at = now_ns();
    world.process("a").freeze().await;
    let buried = world.buried("a", at, bound + slack()).await;
    world.figure("buried", at, buried, Some(bound));
    signal_all(&backends, Signal::CONT);
    // A backend ends when it has executed what waits and finds the lease of its connection over, or goes on waiting.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let woken = now_ns();
    world.process("a").thaw();
    world.joined("a", woken, SOON).await;
    let again = world.status("a").await.expect("it is in the roster").incarnation;
    assert_ne!(again, owner);
    let shown = world.show(&PODS, &again, MANY, woken, SOON).await;
    world.figure("woken, all its workers are shown again", woken, shown, None);
    world.conclude(&Excused::ended(&["a"]).overlap(&["a"])).await
}

/// Stops the backends of a pod's pool while none of them executes anything: one that does holds locks.
async fn stopped_at_rest(world: &World, pod: &str) -> Vec<i32> {
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1) AND state <> 'idle'";
    let began = Instant::now();
    loop {
        let backends = world.backends(pod, "pool").await;
        signal_all(&backends, Signal::STOP);
        let busy: i64 = world.admin.query_one(busy, &[&backends]).await.expect("the backends' state").get(0);
        if busy == 0 && !backends.is_empty() {
            return backends;
        }
        signal_all(&backends, Signal::CONT);
        assert!(began.elapsed() < SOON, "the pool of pod {pod} does not come to rest");
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
}

fn signal_all(backends: &[i32], signal: Signal) {
    for pid in backends {
        // One may have ended.
        let _ = kill_process(Pid::from_raw(*pid).expect("a process"), signal);
    }
}

/// The control session hears the notifications. While it is ended again and again, pod b hears none.
async fn notifications_are_lost() -> Vec<Figure> {
    let (mut world, owner) = settled(World::shared().await, NEVER).await;
    // The publication has an answer as well.
    let bound = world.settings().ping_timeout + world.comparison_bound();
    let (mut at, mut slowest) = (now_ns(), (0, 0));
    for round in 1..=3 {
        world.process("a").order(&Order::Register { workers: 1 }).await;
        loop {
            world.terminate("b", &["control"]).await;
            let shown = world.pods["b"].find(|said| {
                let count = said.shown.get(&owner).copied().unwrap_or_default();
                (said.ev == "shows" && said.t >= at && count == MANY + round).then_some(said.t)
            });
            if let Some(shown) = shown {
                if shown - at > slowest.1 - slowest.0 {
                    slowest = (at, shown);
                }
                at = now_ns();
                break;
            }
            let waited = Duration::from_nanos(now_ns() - at);
            assert!(waited < SOON, "pod b does not show the worker that came in round {round}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    world.figure("a new worker is shown, the slowest of three", slowest.0, slowest.1, Some(bound));
    assert_eq!(world.ends().await, [], "nobody was buried");
    world.conclude(&Excused::default()).await
}

async fn server_restarts() -> Vec<Figure> {
    let mut world = World::own(&[]).await;
    // What a lease tolerates must be more than a restart takes on a loaded machine.
    world.lease *= 2;
    let (mut world, owner) = settled(world, NEVER).await;
    let tolerated = world.worst_case().outage_tolerated;
    let at = now_ns();
    world.server.suffers(Server::stop).await;
    world.process("a").order(&Order::Register { workers: 1 }).await;
    world.server.suffers(Server::start_again).await;
    world.reconnect().await;
    let back = now_ns();
    world.figure("outage", at, back, None);
    world.whole(&PODS, SOON).await;
    let ends = world.ends().await;
    let owner = if ends.is_empty() { owner } else { world.status("a").await.expect("it lives").incarnation };
    let shown = world.show(&PODS, &owner, MANY + 1, at, SOON).await;
    world.figure("what was registered meanwhile is shown", back, shown, Some(world.replicas_bound()));
    if Duration::from_nanos(back - at) > tolerated {
        println!("this machine is too busy to restart a server within what is tolerated");
        return world.conclude(&Excused::ended(&PODS).overlap(&PODS)).await;
    }
    assert_eq!(ends, [], "nobody was buried");
    for pod in PODS {
        let hides = |said: &crate::history::Said| {
            let count = said.shown.get(&owner).copied().unwrap_or_default();
            (said.ev == "shows" && said.t >= at && count < MANY).then(|| said.clone())
        };
        assert_eq!(world.pods[pod].find(hides), None, "pod {pod} hid workers of a pod that lives");
    }
    world.conclude(&Excused::default()).await
}
