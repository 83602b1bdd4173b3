//! What readers of a stream see when its owner is harmed in the middle of it.

use std::time::Duration;

use podlock::RunId;
use rustix::process::Signal;

use crate::checker::Excused;
use crate::patience::SOON;
use crate::pod::{Order, now_ns};
use crate::scenario::Scenario;
use crate::world::{Figure, World, slack};

const STEPS: u64 = 120;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("streams::owner_killed", &[], killed).promises(
            "Two attached readers and a late one see the whole stream once; what was taken back they are told of.",
        ),
        Scenario::new("streams::owner_stopped", &[], stopped)
            .promises("The same, and nothing is taken back: the owner gives its runs back behind what it said."),
        Scenario::new("streams::owner_frozen_past_its_lease_and_woken", &[], frozen)
            .promises("The same; woken, it says nothing more that anybody sees."),
    ]
}

/// Pods of which the first has runs, with readers on the two others.
async fn read_on_two(world: &mut World) -> Vec<RunId> {
    world.settled(&["a", "b", "c"]).await;
    world.start("a", 3, STEPS, 25).await;
    let rows = world.admin.query("SELECT run_id FROM studio_runs", &[]).await.expect("the runs");
    let runs: Vec<RunId> = rows.iter().map(|row| row.get::<_, uuid::Uuid>(0).into()).collect();
    for reader in ["b", "c"] {
        read_on(world, reader, &runs).await;
    }
    runs
}

async fn read_on(world: &mut World, reader: &str, runs: &[RunId]) {
    for run in runs {
        world.process(reader).order(&Order::Attach { run: *run }).await;
    }
    for run in runs.iter().map(ToString::to_string) {
        let at = |said: &crate::history::Said| said.what.as_deref() == Some("chunk") && said.run.as_ref() == Some(&run);
        world.first(&format!("{reader} reads {run}"), SOON, at).await;
    }
}

/// Waits until every reader has seen the end; the checker looks at what they were told.
async fn ended(world: &mut World, readers: usize) {
    let began = std::time::Instant::now();
    loop {
        let logs = world.logs();
        let ends =
            logs.iter().flat_map(|log| &log.said).filter(|s| s.reader.is_some() && s.what.as_deref() == Some("end"));
        let count = ends.count();
        if count == readers {
            return;
        }
        assert!(began.elapsed() < SOON * 2, "{count} of {readers} readers have seen the end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn killed() -> Vec<Figure> {
    let mut world = World::shared().await;
    let runs = read_on_two(&mut world).await;
    let at = world.kill("a").await;
    let resumed = world.resumed(at, SOON).await;
    world.figure("first run goes on", at, resumed, Some(world.worst_case().process_killed));
    let heard = next_chunk(&world, resumed).await;
    world.figure("a reader has its next chunk", at, heard, None);
    read_on(&mut world, "c", &runs).await;
    ended(&mut world, 9).await;
    world.conclude(&Excused::ended(&["a"])).await
}

/// When a reader was first told of a chunk after `since`.
async fn next_chunk(world: &World, since: u64) -> u64 {
    world
        .first("a reader goes on", SOON, |s| s.t >= since && s.reader.is_some() && s.what.as_deref() == Some("chunk"))
        .await
}

async fn stopped() -> Vec<Figure> {
    let mut world = World::shared().await;
    let runs = read_on_two(&mut world).await;
    let at = now_ns();
    world.process("a").signal(Signal::TERM);
    let resumed = world.resumed(at, SOON).await;
    assert_eq!(world.process("a").ended(SOON).await, 0, "a clean stop");
    let heard = next_chunk(&world, resumed).await;
    world.figure("a reader has its next chunk", at, heard, None);
    read_on(&mut world, "c", &runs).await;
    ended(&mut world, 9).await;
    let resets = world.logs().iter().flat_map(|log| &log.said).filter(|s| s.what.as_deref() == Some("reset")).count();
    assert_eq!(resets, 0, "what was said before a clean stop is kept");
    world.conclude(&Excused::ended(&["a"])).await
}

async fn frozen() -> Vec<Figure> {
    let mut world = World::shared().await;
    let runs = read_on_two(&mut world).await;
    let bound = world.worst_case().frozen;
    let at = now_ns();
    world.process("a").freeze().await;
    let resumed = world.resumed(at, bound + slack()).await;
    world.figure("first run goes on", at, resumed, Some(bound));
    let heard = next_chunk(&world, resumed).await;
    world.figure("a reader has its next chunk", at, heard, None);
    let woken = now_ns();
    world.process("a").thaw();
    world.joined("a", woken, SOON).await;
    read_on(&mut world, "c", &runs).await;
    ended(&mut world, 9).await;
    // That no chunk of it was accepted under its old fence is what the checker looks for in every history.
    world.conclude(&Excused::ended(&["a"]).overlap(&["a"])).await
}
