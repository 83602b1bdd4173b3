//! Wall clocks that jump (L8).

use std::time::Duration;

use crate::checker::Excused;
use crate::clock::Clock;
use crate::own_server::{OwnServer, shared_server};
use crate::patience::SOON;
use crate::pod::now_ns;
use crate::scenario::Scenario;
use crate::world::{Figure, World, slack};

const JUMPS: i64 = 4;
const HOUR: i64 = 3600;
const BACK: Duration = Duration::from_secs(20);

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("clocks::a_pods_clock_jumps", &[], a_pods_clock_jumps)
            .promises("An hour forward and back again changes nothing."),
        Scenario::new("clocks::the_servers_clock_jumps_forward", &[], the_servers_clock_jumps_forward).promises(
            "Minutes forward, time and again, bury at most one pod each: the one whose sessions they ended first.",
        ),
        Scenario::new("clocks::the_servers_clock_steps_back", &[], the_servers_clock_steps_back)
            .promises("A lease that is running out is longer by as much; a kill is noticed as ever."),
    ]
}

/// An hour forward, two back, and back to the truth: nobody notices, and a death is pushed as ever.
async fn a_pods_clock_jumps() -> Vec<Figure> {
    let mut world = World::shared().await;
    let clock = Clock::new();
    for pod in ["a", "b"] {
        let mut command = world.command(pod);
        command.envs(clock.variables());
        world.pod_by(pod, command).await;
    }
    world.pod("c").await;
    world.settle().await;
    world.start("a", 6, 400, 25).await;
    for offset in [HOUR, -HOUR, 0] {
        clock.set(offset);
        tokio::time::sleep(world.lease.mul_f64(0.6)).await;
    }
    assert_eq!(world.takeovers().await, 0, "nobody took its runs");
    clock.set(-HOUR);
    let bound = world.worst_case().process_killed;
    let killed = world.kill("a").await;
    let buried = world.buried("a", killed, bound + slack()).await;
    world.figure("killed, buried", killed, buried, Some(bound));
    world.conclude(&Excused::ended(&["a"])).await
}

async fn by(clock: &Clock) -> World {
    let like = shared_server().await;
    World::on(OwnServer::start(clock.server(&like)).await).await
}

/// The server's time-outs read its wall clock, so that a jump may end many sessions at once. At most one pod is buried
/// for it.
async fn the_servers_clock_jumps_forward() -> Vec<Figure> {
    let clock = Clock::new();
    let mut world = by(&clock).await;
    let all = ["a", "b", "c", "d", "e"];
    world.settled(&all).await;
    world.start("a", 6, 400, 25).await;
    let ahead = "SELECT extract(epoch FROM clock_timestamp())::float8";
    clock.set(60);
    let theirs: f64 = world.admin.query_one(ahead, &[]).await.unwrap().get(0);
    let ours = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((theirs - ours - 60.0).abs() < 5.0, "the server's clock is {} s ahead", theirs - ours);
    for jumps in 2..=JUMPS {
        tokio::time::sleep(world.lease.mul_f64(0.7)).await;
        clock.set(jumps * 60);
    }
    tokio::time::sleep(world.lease).await;
    world.whole(&all, SOON).await;
    // A pod both of whose sessions a jump ended before any other's cannot be told from one that died.
    let lost: Vec<String> = world.ends().await.into_iter().map(|(pod, ..)| pod).collect();
    println!("{lost:?} were buried");
    assert!(lost.len() <= usize::try_from(JUMPS).unwrap(), "more than one at a jump: {lost:?}");
    if !lost.contains(&"a".to_owned()) {
        assert_eq!(world.takeovers().await, 0, "nobody took its runs");
    }
    let bound = world.worst_case().process_killed;
    let killed = world.kill("a").await;
    let buried = world.buried("a", killed, bound + slack()).await;
    world.figure("killed afterwards, buried", killed, buried, Some(bound));
    let lost: Vec<&str> = lost.iter().map(String::as_str).chain(["a"]).collect();
    world.conclude(&Excused::ended(&lost).overlap(&lost)).await
}

/// A step back lengthens the lease of whoever is silent by as much, and nothing else: a kill is noticed as ever.
async fn the_servers_clock_steps_back() -> Vec<Figure> {
    let clock = Clock::new();
    let mut world = by(&clock).await;
    world.settled(&["a", "b", "c", "d"]).await;
    world.start("a", 3, 400, 25).await;
    world.start("d", 3, 400, 25).await;
    let worst = world.worst_case();
    let at = now_ns();
    world.process("d").freeze().await;
    clock.set(-i64::try_from(BACK.as_secs()).unwrap());
    let killed = world.kill("a").await;
    let buried = world.buried("a", killed, worst.process_killed + slack()).await;
    world.figure("killed, buried", killed, buried, Some(worst.process_killed));
    let buried = world.buried("d", at, worst.frozen + BACK + slack()).await;
    world.figure("frozen at a step of 20 s back, buried", at, buried, Some(worst.frozen + BACK));
    world.process("d").thaw();
    world.conclude(&Excused::ended(&["a", "d"]).overlap(&["d"])).await
}
