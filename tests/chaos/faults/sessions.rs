//! What happens to a pod's sessions while its process lives: the server ends them one by one, or all at once.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::checker::Excused;
use crate::patience::SOON;
use crate::pod::now_ns;
use crate::scenario::Scenario;
use crate::world::{Figure, LEASE, PodStatus, World, slack};

/// Between two steps of a run.
const PAUSE_MS: u64 = 25;

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("sessions::liveness_terminated", &[], liveness_terminated).promises(
            "The witness tells the peers that the process lives; the same incarnation is back before anybody \
                 stops a run.",
        ),
        Scenario::new("sessions::control_terminated", &[], control_terminated)
            .promises("The pod is not even detached."),
        Scenario::new("sessions::watch_terminated", &[], watch_terminated)
            .promises("Another takes its place, and deaths are pushed to it as before."),
        Scenario::new("sessions::pool_terminated", &[], pool_terminated)
            .promises("Writes that were cut off are repeated, and are there once."),
        Scenario::new("sessions::all_of_one_pod_terminated_at_once", &[], all_terminated).promises(
            "Its peers or itself are quicker, by chance: buried, it comes back as another and what it wrote \
                 late is refused; or it is back as itself.",
        ),
        Scenario::new("sessions::all_of_every_pod_terminated_at_once", &[], everybodys_terminated).promises(
            "Nobody is buried, but at most the one whose sessions ended before those of the peer that \
                 looked.",
        ),
    ]
}

/// Pods a, b and c, settled, with runs on a that go on for longer than a peer would wait for a pod that does not
/// return.
async fn settled() -> (World, PodStatus) {
    let mut world = World::shared().await;
    world.settled(&["a", "b", "c"]).await;
    let last = world.worst_case().connection_broken + Duration::from_secs(1);
    let steps = u64::try_from(last.as_millis()).unwrap() / PAUSE_MS;
    world.start("a", 6, steps, PAUSE_MS).await;
    let was = world.status("a").await.expect("it is in the roster");
    (world, was)
}

/// To the end of the runs nobody noticed: no run moved, nobody was buried, and the pod is who it was.
async fn nobody_noticed(world: World, was: &PodStatus, sessions: i64) -> Vec<Figure> {
    world.all_runs_ended(SOON).await;
    assert_eq!(world.takeovers().await, 0, "nobody took its runs");
    assert_eq!(world.ends().await, [], "nobody was buried");
    assert_eq!(world.roster().await, ["a", "b", "c"]);
    let now = world.status("a").await.expect("it is in the roster");
    assert_eq!((now.whole, &now.incarnation, now.session), (true, &was.incarnation, was.session + sessions));
    world.conclude(&Excused::default()).await
}

/// The liveness session ends: the witness tells the peers that the process lives, and the pod is back before anybody
/// would have stopped a run for it.
async fn liveness_terminated() -> Vec<Figure> {
    let (mut world, was) = settled().await;
    let bound = world.worst_case().outage_tolerated;
    let at = now_ns();
    assert_eq!(world.terminate("a", &["liveness"]).await, 1);
    let (back, _) = world.whole_as("a", SOON, |now| now.session > was.session).await;
    world.figure("its locks are held again", at, back, Some(bound));
    let kinds = "SELECT string_agg(kind, ' ' ORDER BY idx) FROM studio_pod_events WHERE pod_id = 'a'";
    let log: String = world.admin.query_one(kinds, &[]).await.unwrap().get(0);
    assert_eq!(log, "joined detached returned", "what an operator reads of it");
    nobody_noticed(world, &was, 1).await
}

/// The control session ends: the pod is not even detached.
async fn control_terminated() -> Vec<Figure> {
    let (mut world, was) = settled().await;
    let bound = world.worst_case().outage_tolerated;
    let at = now_ns();
    assert_eq!(world.terminate("a", &["control"]).await, 1);
    let (back, _) = world.whole_as("a", SOON, |now| now.control != was.control).await;
    world.figure("its locks are held again", at, back, Some(bound));
    nobody_noticed(world, &was, 0).await
}

/// The watch session ends: another takes its place, and what it would have seen is seen by it. Of deaths that the sweep
/// alone would find, some seconds later.
async fn watch_terminated() -> Vec<Figure> {
    const ROUNDS: usize = 3;
    let mut world = World::shared().await;
    let sweep = LEASE.mul_f64(0.8);
    let seldom = |world: &mut World, name: &str| {
        let mut command = world.command(name);
        command.env("PODLOCK_SWEEP_INTERVAL", format!("{}ms", sweep.as_millis()));
        command
    };
    let bound = podlock::Config::new(&world.url).lease(LEASE).with(|c| c.sweep_interval = Some(sweep)).worst_case();
    let bound = bound.expect("valid settings").process_killed;
    let a = seldom(&mut world, "a");
    world.pod_by("a", a).await;
    let b = seldom(&mut world, "b");
    world.pod_by("b", b).await;
    world.settle().await;
    let was = world.status("a").await.expect("it is in the roster");
    for _ in 0..ROUNDS {
        world.start("b", 3, 40, PAUSE_MS).await;
        let former = world.backends("a", "watch").await;
        let at = now_ns();
        assert_eq!(world.terminate("a", &["watch"]).await, 1);
        let watches = "SELECT pid FROM pg_stat_activity a WHERE datname = current_database() \
                       AND application_name = 'podlock/a/watch' AND pid <> ALL($1) \
                       AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND NOT l.granted \
                       AND l.locktype = 'advisory')";
        world
            .until(SOON, "another session of a watches", async |client| {
                let rows = client.query(watches, &[&former]).await.map_err(|e| e.to_string())?;
                if rows.len() == 1 { Ok(()) } else { Err(format!("{} do", rows.len())) }
            })
            .await;
        world.figure("another watches", at, now_ns(), None);
        let killed = world.kill("b").await;
        let buried = world.buried("b", killed, bound + slack()).await;
        world.figure("its peer is buried", killed, buried, Some(bound));
        let b = seldom(&mut world, "b");
        world.pod_by("b", b).await;
        // Two losses within a tenth of the lease would count as many.
        tokio::time::sleep(LEASE / 10).await;
    }
    let sql = "SELECT detail ->> 'trigger' FROM studio_pod_events WHERE kind = 'buried' ORDER BY idx";
    let triggers: Vec<String> = world.admin.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    // A sweep may by chance be quicker, but not each time.
    assert!(triggers.len() == ROUNDS && triggers.iter().any(|t| t == "push"), "{triggers:?}");
    assert_eq!(world.status("a").await.map(|now| (now.incarnation, now.session)), Some((was.incarnation, was.session)));
    world.conclude(&Excused::ended(&["b"])).await
}

/// The pool's connections end, again and again, in the middle of writes: each is repeated, and is there once.
async fn pool_terminated() -> Vec<Figure> {
    let (mut world, was) = settled().await;
    let bound = world.worst_case().outage_tolerated;
    let steps = "SELECT run_id::text, (checkpoint ->> 'n')::int8 FROM studio_runs WHERE state = 'running'";
    let (mut ended, mut slowest) = (0, (0, 0));
    for _ in 0..10 {
        let at = now_ns();
        ended += world.terminate("a", &["pool"]).await;
        let rows = world.admin.query(steps, &[]).await.unwrap();
        let before: BTreeMap<String, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(before.len(), 6, "all of them run");
        world
            .until(bound + slack(), "each run has made two steps more", async |client| {
                let rows = client.query(steps, &[]).await.map_err(|e| e.to_string())?;
                let now: Vec<(String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
                let on = |(run, n): &(String, i64)| *n >= before[run] + 2;
                if now.iter().all(on) { Ok(()) } else { Err(format!("{before:?}, now {now:?}")) }
            })
            .await;
        let on = now_ns();
        if on - at > slowest.1 - slowest.0 {
            slowest = (at, on);
        }
    }
    assert!(ended >= 10, "{ended} connections were ended");
    world.figure("each run goes on, the slowest of ten times", slowest.0, slowest.1, Some(bound));
    nobody_noticed(world, &was, 0).await
}

/// All sessions of a pod are ended at once. Both of its locks are free, so to its peers the pod is dead until it is
/// back. By chance, the peers or the pod are quicker. If the peers are, its runs go on elsewhere, and its late writes
/// are refused.
async fn all_terminated() -> Vec<Figure> {
    const TRIES: i64 = 10;
    let (mut world, was) = settled().await;
    let bounds = world.worst_case();
    for returns in 0..TRIES {
        let at = now_ns();
        let ended = world.terminate("a", &["liveness", "control", "watch", "pool"]).await;
        assert!(ended >= 3, "{ended} sessions were ended");
        let anew = |now: &PodStatus| now.incarnation != was.incarnation || now.session > was.session + returns;
        let (back, now) = world.whole_as("a", SOON, anew).await;
        if now.incarnation == was.incarnation {
            world.figure("it was quicker: back as itself", at, back, Some(bounds.outage_tolerated));
            continue;
        }
        let buried = world.buried("a", at, bounds.process_killed + slack()).await;
        world.figure("its peers were quicker: buried", at, buried, Some(bounds.process_killed));
        world.figure("back as another", at, back, Some(bounds.outage_tolerated));
        let resumed = world.resumed(at, SOON).await;
        world.figure("first run goes on", at, resumed, Some(bounds.process_killed));
        return buried_alive(world).await;
    }
    // So quick is it here: then nobody may have noticed.
    nobody_noticed(world, &was, TRIES).await
}

/// A living pod was buried, once.
async fn buried_alive(world: World) -> Vec<Figure> {
    world.all_runs_ended(SOON).await;
    let ends = world.ends().await;
    let by_a_peer = |(pod, reason, by): &(String, String, Option<String>)| {
        pod == "a" && reason == "lost" && matches!(by.as_deref(), Some("b" | "c"))
    };
    assert!(ends.len() == 1 && ends.iter().all(by_a_peer), "{ends:?}");
    assert_eq!(world.roster().await, ["a", "b", "c"], "it registered anew");
    // Every attempt of the former incarnation ended with it.
    let sql = "SELECT DISTINCT a.attempt, a.reason FROM studio_run_attempts a ORDER BY 1, 2";
    let rows = world.admin.query(sql, &[]).await.unwrap();
    let attempts: Vec<(i32, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(attempts, [(1, "lost".to_owned()), (2, "succeeded".to_owned())]);
    // Told of its burial only after it, its handlers may have computed on for a moment.
    world.conclude(&Excused::ended(&["a"]).overlap(&["a"])).await
}

/// Somebody ends every session of the database: no pod is settled when it is back, and nobody is buried, unless it was
/// one whose sessions ended before those of the peer that looked.
async fn everybodys_terminated() -> Vec<Figure> {
    const PODS: [&str; 4] = ["a", "b", "c", "d"];
    let mut world = World::shared().await;
    world.settled(&PODS).await;
    let bounds = world.worst_case();
    // Until after the moment at which the peers' patience would be over.
    let last = bounds.many_lost + Duration::from_secs(1);
    let steps = u64::try_from(last.as_millis()).unwrap() / PAUSE_MS;
    let mut was = Vec::new();
    for pod in PODS {
        world.start(pod, 3, steps, PAUSE_MS).await;
        was.push(world.status(pod).await.expect("it is in the roster"));
    }
    let at = now_ns();
    let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
               AND pid <> pg_backend_pid()";
    let ended = world.admin.query(all, &[]).await.expect("terminated").len();
    assert!(ended >= 3 * PODS.len(), "{ended} sessions were ended");
    let mut back = 0;
    for (pod, was) in PODS.iter().zip(&was) {
        let again = world.whole_as(pod, SOON, |now| now.incarnation != was.incarnation || now.session > was.session);
        back = again.await.0.max(back);
    }
    world.figure("every pod holds its locks again", at, back, Some(bounds.outage_tolerated));
    at_most_one_was_buried(world, &PODS).await
}

/// Where every session of every pod ended within a moment.
pub(super) async fn at_most_one_was_buried(world: World, pods: &[&str]) -> Vec<Figure> {
    world.all_runs_ended(SOON).await;
    let ends = world.ends().await;
    println!("{} of {} were buried: {ends:?}", ends.len(), pods.len());
    assert!(ends.len() <= 1 && ends.iter().all(|(_, reason, by)| reason == "lost" && by.is_some()), "{ends:?}");
    if ends.is_empty() {
        assert_eq!(world.takeovers().await, 0, "nobody was buried, and no run moved");
    }
    let lost: Vec<&str> = ends.iter().map(|(pod, ..)| pod.as_str()).collect();
    assert_eq!(world.roster().await, pods);
    world.locks_are_of(pods).await;
    world.conclude(&Excused::ended(&lost).overlap(&lost)).await
}
