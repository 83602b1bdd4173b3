//! What happens to the process of a pod.

use rustix::process::Signal;

use crate::checker::Excused;
use crate::patience::SOON;
use crate::pod::{Order, now_ns};
use crate::scenario::Scenario;
use crate::world::{Figure, World, slack};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("processes::sigkill", &[], sigkill)
            .promises("The server tells its neighbour, who buries it; its runs go on elsewhere."),
        Scenario::new("processes::sigterm_in_the_middle_of_runs", &[], sigterm)
            .promises("Runs are given back at their next step, the pod ends with 0, and no run counts a crash."),
        Scenario::new("processes::sigstop_longer_than_the_lease", &[], frozen_for_long)
            .promises("The server ends its lease. Woken, it finds itself replaced, and none of its writes lands."),
        Scenario::new("processes::sigstop_shorter_than_the_lease", &[], frozen_for_a_moment)
            .promises("Nobody notices."),
        Scenario::new("processes::blocked_runtime", &[], blocked_runtime)
            .promises("The pod ends its sessions itself, and comes back as another when its application runs again."),
    ]
}

/// A pod is killed; a neighbour is told by the server, buries it, and its runs go on.
async fn sigkill() -> Vec<Figure> {
    let mut world = World::shared().await;
    world.settled(&["a", "b", "c"]).await;
    world.start("a", 6, 60, 25).await;
    let bound = world.worst_case().process_killed;
    let killed = world.kill("a").await;
    let buried = world.buried("a", killed, bound + slack()).await;
    let resumed = world.resumed(killed, SOON).await;
    world.figure("buried", killed, buried, Some(bound));
    world.figure("first run goes on", killed, resumed, Some(bound));
    world.conclude(&Excused::ended(&["a"])).await
}

/// SIGTERM: the pod gives its runs back at their next step, ends with 0, and is buried as one that stopped.
async fn sigterm() -> Vec<Figure> {
    let mut world = World::shared().await;
    world.settled(&["a", "b", "c"]).await;
    world.start("a", 6, 60, 25).await;
    let at = now_ns();
    world.process("a").signal(Signal::TERM);
    let resumed = world.resumed(at, SOON).await;
    assert_eq!(world.process("a").ended(SOON).await, 0, "a clean stop");
    let buried = world.buried("a", at, SOON).await;
    world.figure("first run goes on", at, resumed, None);
    world.figure("buried", at, buried, None);
    let reason = "SELECT reason FROM studio_pod_sessions WHERE pod_id = 'a'";
    assert_eq!(world.admin.query_one(reason, &[]).await.unwrap().get::<_, &str>(0), "shutdown");
    let crashes = "SELECT max(crashes) FROM studio_runs";
    assert_eq!(world.admin.query_one(crashes, &[]).await.unwrap().get::<_, i32>(0), 0, "a stop is no crash");
    world.conclude(&Excused::ended(&["a"])).await
}

/// A stopped process is buried when its lease is over. Woken, it finds itself replaced, and not one of its writes
/// lands.
async fn frozen_for_long() -> Vec<Figure> {
    let mut world = World::shared().await;
    world.settled(&["a", "b", "c"]).await;
    world.start("a", 6, 200, 25).await;
    let bound = world.worst_case().frozen;
    let at = now_ns();
    world.process("a").freeze().await;
    let buried = world.buried("a", at, bound + slack()).await;
    let resumed = world.resumed(at, SOON).await;
    world.figure("buried", at, buried, Some(bound));
    world.figure("first run goes on", at, resumed, Some(bound));
    let woken = now_ns();
    world.process("a").thaw();
    let rejoined = world.joined("a", woken, SOON).await;
    world.figure("woken, registered anew", woken, rejoined, None);
    // Its handlers could not stop while they were stopped: they are told when they wake.
    world.conclude(&Excused::ended(&["a"]).overlap(&["a"])).await
}

/// Stopped for less than its lease, a pod loses nothing.
async fn frozen_for_a_moment() -> Vec<Figure> {
    let mut world = World::shared().await;
    world.settled(&["a", "b", "c"]).await;
    world.start("a", 6, 200, 25).await;
    world.process("a").freeze().await;
    tokio::time::sleep(world.lease.mul_f64(0.5)).await;
    world.process("a").thaw();
    tokio::time::sleep(world.lease).await;
    assert_eq!(world.takeovers().await, 0, "nobody took its runs");
    world.conclude(&Excused::default()).await
}

/// A pod whose application's runtime is blocked ends its own sessions. When the runtime runs again, the pod comes back
/// as a new incarnation.
async fn blocked_runtime() -> Vec<Figure> {
    let mut world = World::shared().await;
    world.settled(&["a", "b", "c"]).await;
    world.start("a", 6, 200, 25).await;
    let bound = world.worst_case().runtime_blocked;
    let ms = u64::try_from(bound.as_millis()).unwrap() + 3000;
    let at = now_ns();
    world.process("a").order(&Order::Block { ms }).await;
    let buried = world.buried("a", at, bound + slack()).await;
    let resumed = world.resumed(at, SOON).await;
    world.figure("buried", at, buried, Some(bound));
    world.figure("first run goes on", at, resumed, Some(bound));
    // podlock cannot tell a blocked handler to stop. So the handler goes on for a moment when the application runs
    // again.
    world.conclude(&Excused::ended(&["a"]).overlap(&["a"])).await
}
