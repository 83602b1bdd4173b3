//! What happens to many pods at once: starts, losses, rollouts, and what administrators do beside them.

use std::time::{Duration, Instant};

use podlock::migrate;
use podlock::throwaway::Server;
use rustix::process::Signal;
use tokio_postgres::error::SqlState;

use crate::checker::Excused;
use crate::history::Said;
use crate::own_server::{OwnServer, shared_server};
use crate::patience::SOON;
use crate::pod::{BRINGS, now_ns};
use crate::process;
use crate::scenario::Scenario;
use crate::world::{Figure, START, World, connect, slack};

pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("fleets::fifty_pods_at_once", &[], fifty)
            .alone()
            .promises("On an empty database one makes the tables and all register; then five are killed together."),
        Scenario::new("fleets::all_but_one_are_lost_at_once", &[], all_but_one).promises(
            "It could as well be the survivor that was cut off: it gives the others time to come back, then \
                 buries them.",
        ),
        Scenario::new("fleets::all_are_lost_and_one_comes_back", &[], all_lost)
            .promises("It has its own runs at once, and those of the others when it has settled."),
        Scenario::new("fleets::all_are_stopped_and_one_comes_back", &[], all_stopped).promises(
            "Scaled to nothing and up again: the first pod has every run at once, and none counts as \
                 crashed.",
        ),
        Scenario::new("fleets::a_rolling_upgrade_with_a_migration", &[], rolling_upgrade).promises(
            "Pod by pod, the schema migrated under the feet of the older ones: runs go on from older to \
                 newer, and none counts a crash.",
        ),
        Scenario::new("fleets::leases_are_changed_and_the_database_restarts", &[], unequal_leases).promises(
            "A pod of the longer lease that finds no way back is buried only after its runs were told to stop, \
                 although its peers of the shorter lease were up again long before.",
        ),
        Scenario::new("fleets::create_index_concurrently_is_not_held_up", &[], index_concurrently)
            .promises("It waits for a slice of the watch at most, and for statements that run."),
        Scenario::new("fleets::tables_locked_for_longer_than_the_lease", &[], tables_locked).promises(
            "Nobody can write or look, and every pod keeps its locks; a dead one is buried when that is \
                 over.",
        ),
    ]
}

/// Signals all of them, and only then waits for each to be gone.
async fn kill_in_one_go(world: &mut World, names: &[&str]) -> u64 {
    let at = now_ns();
    for name in names {
        world.process(name).signal(Signal::KILL);
    }
    for name in names {
        assert_eq!(world.process(name).ended(SOON).await, -1, "killed");
    }
    at
}

/// When the last of them was buried.
async fn all_buried(world: &World, names: &[&str], since: u64, limit: Duration) -> u64 {
    let mut last = 0;
    for name in names {
        last = world.buried(name, since, limit).await.max(last);
    }
    last
}

/// Fifty processes start at the same moment on a database without tables: one of them makes these, all register. Then
/// some are killed together.
async fn fifty() -> Vec<Figure> {
    const PODS: usize = 50;
    const KILLED: [&str; 5] = ["p00", "p11", "p22", "p33", "p44"];
    let server = OwnServer::start(crate::inherited::postgres().setting("max_connections", "600")).await;
    let mut world = World::unmigrated(server).await;
    // Two cores have fifty processes to carry.
    world.lease = Duration::from_secs(10);
    let names: Vec<String> = (0..PODS).map(|i| format!("p{i:02}")).collect();
    let at = now_ns();
    for name in &names {
        let command = world.command(name);
        world.spawn(name, command);
    }
    for name in &names {
        world.process(name).ready(START * 2).await;
    }
    world.figure("all fifty are registered", at, now_ns(), None);
    assert_eq!(world.roster().await, names);
    let sql = "SELECT version FROM studio_schema_history ORDER BY 1";
    let versions: Vec<i32> = world.admin.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(versions, (1..=migrate::newest()).collect::<Vec<_>>(), "each was applied once");
    let sql = "SELECT DISTINCT kind FROM studio_pod_events";
    let kinds: Vec<String> = world.admin.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(kinds, ["joined"], "nobody stumbled");
    world.settle().await;
    for name in KILLED.iter().chain(&["p01", "p02"]) {
        world.start(name, 4, 160, 50).await;
    }
    let bound = world.worst_case().process_killed;
    let killed = kill_in_one_go(&mut world, &KILLED).await;
    let buried = all_buried(&world, &KILLED, killed, bound + slack()).await;
    world.figure("five are killed: the last is buried", killed, buried, Some(bound));
    let resumed = world.resumed(killed, SOON).await;
    world.figure("first run goes on", killed, resumed, Some(bound));
    world.all_runs_ended(SOON).await;
    let left: Vec<String> = names.iter().filter(|name| !KILLED.contains(&name.as_str())).cloned().collect();
    assert_eq!(world.roster().await, left);
    for name in &left {
        world.whole_as(name, SOON, |now| now.session == 1).await;
    }
    world.conclude(&Excused::ended(&KILLED)).await
}

/// Four of five are killed in one go. It could as well be the survivor that was cut off: it gives them time to come
/// back before it buries them.
async fn all_but_one() -> Vec<Figure> {
    const KILLED: [&str; 4] = ["a", "b", "c", "d"];
    let mut world = World::shared().await;
    world.settled(&["a", "b", "c", "d", "e"]).await;
    for pod in ["a", "b", "c", "d", "e"] {
        world.start(pod, 3, 100, 25).await;
    }
    let bound = world.worst_case().many_lost;
    let killed = kill_in_one_go(&mut world, &KILLED).await;
    let buried = all_buried(&world, &KILLED, killed, bound + slack()).await;
    world.figure("the last is buried", killed, buried, Some(bound));
    world.all_runs_ended(SOON).await;
    let ends = world.ends().await;
    assert!(ends.len() == 4 && ends.iter().all(|(_, why, by)| why == "lost" && by.as_deref() == Some("e")), "{ends:?}");
    // Whose sessions ended first may have been seen alone, and was dead at once.
    let settle = i64::try_from(world.settings().settle.as_millis()).unwrap();
    let sql = "SELECT (detail -> 'evidence' ->> 'in_sight_ms')::int8 FROM studio_pod_events WHERE kind = 'buried'";
    let in_sight: Vec<i64> = world.admin.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert!(in_sight.iter().filter(|ms| **ms < settle).count() <= 1, "they were given {in_sight:?} ms");
    assert_eq!(world.roster().await, ["e"]);
    world.conclude(&Excused::ended(&KILLED)).await
}

/// Every pod is killed, and one is started again: its own runs go on with it at once. Those of the others it may take
/// when it has settled, and that runs beside the time that it gives to the others, so that the bound of many losses
/// holds from its own start.
async fn all_lost() -> Vec<Figure> {
    const PODS: [&str; 4] = ["a", "b", "c", "d"];
    let mut world = World::shared().await;
    world.settled(&PODS).await;
    for pod in PODS {
        world.start(pod, 3, 100, 25).await;
    }
    let bounds = world.worst_case();
    kill_in_one_go(&mut world, &PODS).await;
    world.pod("a").await;
    let ready = now_ns();
    let resumed = world.resumed(0, SOON).await;
    world.figure("there again, its own runs go on", ready, resumed, Some(bounds.process_killed));
    let buried = all_buried(&world, &["b", "c", "d"], ready, bounds.many_lost + slack()).await;
    world.figure("there again, the last of the others is buried", ready, buried, Some(bounds.many_lost));
    world.all_runs_ended(SOON).await;
    let end = |pod: &str, why: &str, by: Option<&str>| (pod.to_owned(), why.to_owned(), by.map(str::to_owned));
    let lost = |pod| end(pod, "lost", Some("a"));
    assert_eq!(world.ends().await, [end("a", "replaced", None), lost("b"), lost("c"), lost("d")]);
    assert_eq!(world.roster().await, ["a"]);
    world.conclude(&Excused::ended(&PODS)).await
}

/// Scaled to nothing and up again: whoever stopped gave its runs back, so that the first pod has all of them at once,
/// and none counts as crashed.
async fn all_stopped() -> Vec<Figure> {
    const PODS: [&str; 3] = ["a", "b", "c"];
    let mut world = World::shared().await;
    world.settled(&PODS).await;
    for pod in PODS {
        world.start(pod, 3, 100, 25).await;
    }
    let at = now_ns();
    for pod in PODS {
        world.process(pod).signal(Signal::TERM);
    }
    for pod in PODS {
        assert_eq!(world.process(pod).ended(SOON).await, 0, "a clean stop of {pod}");
    }
    world.figure("all have stopped", at, now_ns(), None);
    let owned = "SELECT count(*) FROM studio_runs WHERE owner_incarnation IS NOT NULL AND state = 'running'";
    assert_eq!(world.admin.query_one(owned, &[]).await.unwrap().get::<_, i64>(0), 0, "every run was given back");
    world.locks_are_of(&[]).await;
    let bounds = world.worst_case();
    world.pod("d").await;
    let ready = now_ns();
    let all_go_on = "SELECT count(*) FROM studio_runs WHERE owner_pod = 'd' OR state <> 'running'";
    world
        .until(bounds.process_killed + slack(), "every run goes on", async |client| {
            let on: i64 = client.query_one(all_go_on, &[]).await.map_err(|e| e.to_string())?.get(0);
            if on == 9 { Ok(()) } else { Err(format!("{on} of 9")) }
        })
        .await;
    world.figure("another is there: every run goes on", ready, now_ns(), Some(bounds.process_killed));
    let left: Vec<String> = world.roster().await.into_iter().filter(|pod| pod != "d").collect();
    let left: Vec<&str> = left.iter().map(String::as_str).collect();
    let buried = all_buried(&world, &left, ready, bounds.many_lost + slack()).await;
    world.figure("and the last of those that stopped is buried", ready, buried, Some(bounds.many_lost));
    world.all_runs_ended(SOON).await;
    assert!(world.ends().await.iter().all(|(_, reason, _)| reason == "shutdown"), "{:?}", world.ends().await);
    assert_eq!(crashes(&world).await, 0, "a stop is no crash");
    assert_eq!(world.roster().await, ["d"]);
    world.conclude(&Excused::ended(&PODS)).await
}

async fn crashes(world: &World) -> i32 {
    world.admin.query_one("SELECT max(crashes) FROM studio_runs", &[]).await.unwrap().get(0)
}

/// What a version to come might do that only adds: columns, with defaults and without, to each table, while pods live
/// on it. As refinery applies one: in one transaction, under the migration lock; by whoever is first.
fn later_version() -> String {
    let version = migrate::newest() + 1;
    format!(
        "SET statement_timeout = '60s'; SET lock_timeout = '60s'; BEGIN; \
         SELECT pg_advisory_xact_lock(hashtextextended('public', 3)); \
         DO $later$ DECLARE name text; BEGIN \
             IF EXISTS (SELECT FROM studio_schema_history WHERE version = {version}) THEN RETURN; END IF; \
             FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename LIKE 'studio\\_%' \
             ORDER BY 1 LOOP \
                 EXECUTE format('ALTER TABLE %I ADD later_text text, ADD later_number integer NOT NULL DEFAULT 7', \
                 name); END LOOP; \
             CREATE TABLE studio_later (n integer); \
             INSERT INTO studio_schema_history (version, name) VALUES ({version}, 'later'); \
         END $later$; COMMIT"
    )
}

/// A rollout, pod by pod: one of the newer release is started, the first of which migrates the schema under the feet of
/// the older ones; then one of the older release is told to stop. Runs go on, from the older to the newer, and none
/// counts a crash.
async fn rolling_upgrade() -> Vec<Figure> {
    let mut world = World::unmigrated(shared_server().await).await;
    world.settled(&["a", "b", "c"]).await;
    for pod in ["a", "b", "c"] {
        world.start(pod, 4, 500, 25).await;
    }
    let script = later_version();
    let began = now_ns();
    for (old, new) in [("a", "d"), ("b", "e"), ("c", "f")] {
        let mut command = world.command(new);
        command.env(BRINGS, &script);
        let at = now_ns();
        world.pod_by(new, command).await;
        world.figure("a pod of the newer release is there", at, now_ns(), None);
        let at = now_ns();
        world.process(old).signal(Signal::TERM);
        assert_eq!(world.process(old).ended(SOON).await, 0, "a clean stop of {old}");
        world.figure("one of the older has stopped", at, now_ns(), None);
    }
    // The newer ones have yet to settle, and to make sure that the older did not only all lose their connections.
    let bound = world.worst_case().many_lost;
    let stopped = now_ns();
    let buried = all_buried(&world, &["a", "b", "c"], began, bound + slack()).await;
    world.figure("all of the older are buried", stopped, buried, Some(bound));
    world.all_runs_ended(SOON).await;
    let later = "SELECT count(*) FROM studio_schema_history WHERE name = 'later'";
    assert_eq!(world.admin.query_one(later, &[]).await.unwrap().get::<_, i64>(0), 1, "migrated once");
    assert_eq!(world.roster().await, ["d", "e", "f"]);
    let ends = world.ends().await;
    assert!(ends.len() == 3 && ends.iter().all(|(_, reason, _)| reason == "shutdown"), "{ends:?}");
    assert_eq!(crashes(&world).await, 0, "a rollout is no crash");
    let standstill = "SELECT (extract(epoch FROM max(gap)) * 1e9)::int8 FROM (SELECT at - lag(at) OVER \
                      (PARTITION BY new ->> 'run_id' ORDER BY seq) AS gap FROM chaos.history WHERE relation = 'run') g";
    let longest: i64 = world.admin.query_one(standstill, &[]).await.unwrap().get(0);
    world.figure("the longest that a run stood still", 0, u64::try_from(longest).unwrap(), None);
    world.conclude(&Excused::ended(&["a", "b", "c"])).await
}

/// In the middle of a rollout that makes the lease five times as long, the database restarts. The first pod of the
/// longer lease cannot log in again, and its runs go on until its own deadline. The pods of the shorter lease are up
/// long before.
async fn unequal_leases() -> Vec<Figure> {
    let mut world = World::own(&[]).await;
    world.settled(&["a", "b"]).await;
    world.start("a", 2, 200, 50).await;
    world.lease *= 5;
    let (role, url) = world.role_beside("longer").await;
    let command = process::command(&[], "c", &url, world.lease);
    world.pod_by("c", command).await;
    world.start("c", 3, 600, 50).await;
    let bounds = world.worst_case();
    let was = world.status("c").await.expect("it is in the roster").incarnation;
    // A server that has no room for it.
    let full = |limit: i32| format!("ALTER ROLE {role} CONNECTION LIMIT {limit}");
    world.admin.batch_execute(&full(0)).await.expect("no room");
    let began = now_ns();
    world.server.suffers(Server::restart_fast).await;
    world.reconnect().await;
    let back = world.whole(&["a", "b"], SOON).await;
    world.figure("the pods of the shorter lease are back", began, back, None);
    let told = |s: &Said| s.t > began && s.what.as_deref() == Some("self_fenced");
    let told = world.each(&["c"], "it told its runs to stop", bounds.silent_pod_stops + slack(), told).await;
    world.figure("the runs of the longer lease are told to stop", began, told, Some(bounds.silent_pod_stops));
    let buried = world.buried("c", began, bounds.database_restarted + slack()).await;
    world.figure("its pod is buried", began, buried, Some(bounds.database_restarted));
    assert!(told < buried, "it was buried before its runs were told to stop: {buried}, {told}");
    let ends = world.ends().await;
    assert!(ends.iter().any(|(pod, reason, by)| pod == "c" && reason == "lost" && by.is_some()), "{ends:?}");
    let resumed = world.resumed(began, SOON).await;
    world.figure("its first run goes on", began, resumed, Some(bounds.database_restarted));
    world.admin.batch_execute(&full(-1)).await.expect("room again");
    world.whole_as("c", SOON, |now| now.incarnation != was).await;
    world.all_runs_ended(SOON).await;
    assert_eq!(world.roster().await, ["a", "b", "c"]);
    // A machine so slow that a restart outlasts the shorter lease ends its pods' incarnations, too.
    world.conclude(&Excused::ended(&["a", "b", "c"])).await
}

/// It has to wait for every statement that was under way before it, those of the watch too: at most for one slice of
/// these, and for the others as long as any statement of a pod may take.
async fn index_concurrently() -> Vec<Figure> {
    let mut world = World::shared().await;
    let orders = "CREATE TABLE orders AS SELECT n, n % 97 AS customer FROM generate_series(1, 50000) n";
    world.admin.batch_execute(orders).await.expect("a table of the service");
    let settings = world.settings();
    let alone = indices(&mut world, ["no pods: on studio_runs", "no pods: on a table of the service"], None).await;
    let bound = alone + settings.watch_slice + settings.statement_timeout;
    world.settled(&["a", "b", "c", "d"]).await;
    let mut was = Vec::new();
    for pod in ["a", "b", "c", "d"] {
        was.push(world.status(pod).await.expect("it is in the roster").incarnation);
    }
    indices(&mut world, ["idle pods: on studio_runs", "idle pods: on a table of the service"], Some(bound)).await;
    for pod in ["a", "b", "c", "d"] {
        world.start(pod, 6, 200, 25).await;
    }
    indices(&mut world, ["busy pods: on studio_runs", "busy pods: on a table of the service"], Some(bound)).await;
    assert_eq!(running(&world).await, 24, "they were busy to the end");
    world.all_runs_ended(SOON).await;
    for (pod, was) in ["a", "b", "c", "d"].iter().zip(&was) {
        let now = world.status(pod).await.expect("it is in the roster");
        assert_eq!((now.whole, &now.incarnation, now.session), (true, was, 1), "{pod} noticed nothing");
    }
    assert_eq!((world.takeovers().await, world.ends().await), (0, vec![]));
    world.conclude(&Excused::default()).await
}

/// Somebody keeps every table of podlock's to himself, as a migration that rewrites them does, and for longer than the
/// lease: no pod can write or look, and each holds its locks all the same. One that is killed meanwhile is buried when
/// that is over.
async fn tables_locked() -> Vec<Figure> {
    let mut world = World::shared().await;
    world.settled(&["a", "b", "c"]).await;
    for pod in ["a", "b", "c"] {
        world.start(pod, 4, 240, 25).await;
    }
    let (a, b) = (world.status("a").await.unwrap(), world.status("b").await.unwrap());
    let bounds = world.worst_case();
    let other = connect(&world.server.socket_url(&world.database)).await;
    let all = "DO $$ DECLARE name text; BEGIN FOR name IN SELECT tablename FROM pg_tables \
               WHERE schemaname = 'public' LOOP \
               EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', name); END LOOP; END $$";
    // A pod's statement may lock two of the tables in the other order. Of the two, the server ends either one.
    other.batch_execute("BEGIN").await.unwrap();
    while let Err(e) = other.batch_execute(all).await {
        assert_eq!(e.code(), Some(&SqlState::T_R_DEADLOCK_DETECTED), "every table's lock: {e:?}");
        other.batch_execute("ROLLBACK; BEGIN").await.unwrap();
    }
    let locked = now_ns();
    tokio::time::sleep(world.lease.mul_f64(0.5)).await;
    world.kill("c").await;
    tokio::time::sleep(world.lease).await;
    // A pod may hear of the end, and bury, before this process does.
    let over = now_ns();
    other.batch_execute("COMMIT").await.expect("its end");
    world.figure("nobody could write for", locked, over, None);
    let buried = world.buried("c", over, bounds.process_killed + slack()).await;
    world.figure("it is over: who died meanwhile is buried", over, buried, Some(bounds.process_killed));
    let steps =
        "SELECT count(*) FROM chaos.history WHERE relation = 'run' AND at > clock_timestamp() - interval '250 ms'";
    world
        .until(bounds.process_killed + slack(), "runs go on", async |client| {
            let made: i64 = client.query_one(steps, &[]).await.map_err(|e| e.to_string())?.get(0);
            if made > 0 { Ok(()) } else { Err("no step".to_owned()) }
        })
        .await;
    world.figure("it is over: runs go on", over, now_ns(), Some(bounds.process_killed));
    world.all_runs_ended(SOON).await;
    for (pod, was) in [("a", a), ("b", b)] {
        let now = world.status(pod).await.expect("it is in the roster");
        assert_eq!((now.whole, now.incarnation, now.session), (true, was.incarnation, was.session), "{pod}");
    }
    let ends = world.ends().await;
    assert!(matches!(ends.as_slice(), [(pod, reason, Some(_))] if pod == "c" && reason == "lost"), "{ends:?}");
    world.conclude(&Excused::ended(&["c"])).await
}

async fn running(world: &World) -> i64 {
    world.admin.query_one("SELECT count(*) FROM studio_runs WHERE state = 'running'", &[]).await.unwrap().get(0)
}

/// Makes an index on either table and drops it again; returns how long the slower took to make.
async fn indices(world: &mut World, what: [&'static str; 2], bound: Option<Duration>) -> Duration {
    let mut slower = Duration::ZERO;
    for (what, on) in what.into_iter().zip(["studio_runs (finished_at)", "orders (customer)"]) {
        let began = Instant::now();
        let at = now_ns();
        let made = format!("CREATE INDEX CONCURRENTLY made_beside_pods ON {on}");
        let made = tokio::time::timeout(SOON, world.admin.batch_execute(&made)).await;
        made.unwrap_or_else(|_| panic!("{what}: no index within {SOON:?}")).expect("an index");
        world.figure(what, at, now_ns(), bound);
        slower = slower.max(began.elapsed());
        let valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'made_beside_pods'::regclass";
        assert!(world.admin.query_one(valid, &[]).await.unwrap().get::<_, bool>(0), "{what}");
        let dropped = "DROP INDEX CONCURRENTLY made_beside_pods";
        let dropped = tokio::time::timeout(SOON, world.admin.batch_execute(dropped)).await;
        dropped.unwrap_or_else(|_| panic!("{what}: not dropped within {SOON:?}")).expect("dropped");
    }
    slower
}
