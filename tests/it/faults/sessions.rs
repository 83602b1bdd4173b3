//! Sessions ended under a living pod.

use std::time::Duration;

use podlock::NewRun;
use serde_json::json;

use crate::patience::SOON;
use crate::support::faults::{Audit, OwnServer, audited};
use crate::support::{Db, eventually, lease, start, timed};

/// The kinds of the events about a pod, in order.
async fn events_of(db: &Db, pod: &str) -> Vec<String> {
    // How long a loaded machine takes to reconnect decides whether its peers told that they wait.
    let sql = "SELECT kind FROM studio_pod_events WHERE pod_id = $1 AND kind <> 'held' ORDER BY idx";
    let rows = db.client.query(sql, &[&pod]).await;
    rows.unwrap().iter().map(|row| row.get(0)).collect()
}

/// The backends of one of pod `a`'s sessions.
async fn backends(db: &Db, role: &str) -> Vec<i32> {
    let sql =
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'podlock/a/' || $1";
    db.client.query(sql, &[&role]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn session_number(db: &Db, pod: &str) -> i64 {
    db.client.scalar("SELECT session FROM studio_pods WHERE pod_id = $1", &[&pod]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_liveness_backend_was_terminated_is_the_same_incarnation_again() {
    timed(async {
        let db = Db::new().await;
        let audit = Audit::new();
        let mut pods = Vec::new();
        for name in ["a", "b", "c"] {
            pods.push(audited(db.config(name), &audit).start().await.unwrap());
        }
        let run = pods[0].start(NewRun::new("work")).await.unwrap().run_id;
        let (was, then) = (pods[0].incarnation(), db.client.run(run).await);
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        assert_eq!(db.client.terminate("a", "liveness").await, 1);
        eventually(SOON, "pod a returned", || async {
            match session_number(&db, "a").await {
                2 => Ok(()),
                n => Err(format!("session {n}")),
            }
        })
        .await;
        db.client.armed("a", SOON).await;
        assert_eq!(pods[0].incarnation(), was);
        assert_eq!(events_of(&db, "a").await, ["joined", "detached", "returned"]);
        // Past the time at which a peer that did not see it return would bury it.
        let settings = pods[0].settings();
        tokio::time::sleep(settings.reconnect_grace + settings.hold_probe_interval * 2).await;
        assert_eq!(events_of(&db, "a").await, ["joined", "detached", "returned"]);
        assert_eq!(db.client.run(run).await, then, "nobody took its run");
        assert_eq!(audit.seen(), Vec::<String>::new());
        audit.let_finish();
        assert_eq!(db.client.run_in_state(run, "succeeded", SOON).await.attempt, 1);
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_each_session_was_terminated_in_every_order_a_death_is_still_pushed() {
    timed(async {
        let db = Db::new().await;
        // Its sweep is rare enough to tell a push from it.
        let lease = Duration::from_secs(6);
        let config = |name| db.config(name).lease(lease).with(|c| c.sweep_interval = Some(Duration::from_secs(4)));
        let a = start(config("a")).await;
        let b = start(config("b")).await;
        let (was, run) = (a.incarnation(), b.start(NewRun::new("wait")).await.unwrap().run_id);
        let orders = [
            ["liveness", "control", "watch"],
            ["liveness", "watch", "control"],
            ["control", "liveness", "watch"],
            ["control", "watch", "liveness"],
            ["watch", "liveness", "control"],
            ["watch", "control", "liveness"],
        ];
        for order in orders {
            for role in order {
                let old = backends(&db, role).await;
                assert_eq!(db.client.terminate("a", role).await, 1, "{order:?} {role}");
                // For a moment the old backend and a new one may be there side by side.
                eventually(SOON, &format!("{role} is another backend"), || async {
                    let now = backends(&db, role).await;
                    if now.len() == 1 && now != old { Ok(()) } else { Err(format!("{now:?}, before {old:?}")) }
                })
                .await;
                db.client.armed("a", SOON).await;
            }
        }
        assert_eq!(a.incarnation(), was);
        assert_eq!(session_number(&db, "a").await, 7, "six times back");
        assert_eq!(db.client.roster().await, ["a", "b"]);
        // It may bury again once it has held its lock for `settle`.
        tokio::time::sleep(lease + Duration::from_millis(300)).await;
        let dead = b.incarnation();
        drop(b);
        db.client.run_owned_by(run, was, SOON).await;
        let detail: serde_json::Value = db
            .client
            .scalar(
                "SELECT detail FROM studio_pod_events WHERE kind = 'buried' AND incarnation = $1",
                &[&dead.as_uuid()],
            )
            .await;
        assert_eq!(detail["trigger"], "push", "{detail}");
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_living_pod_that_loses_both_witnesses_at_once_is_buried_and_comes_back_as_another() {
    timed(async {
        let db = Db::new().await;
        let audit = Audit::new();
        let mut pods = Vec::new();
        for name in ["a", "b", "c"] {
            pods.push(audited(db.config(name), &audit).start().await.unwrap());
        }
        let mut runs = Vec::new();
        for _ in 0..4 {
            runs.push(pods[0].start(NewRun::new("work")).await.unwrap().run_id);
        }
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        let was = pods[0].incarnation();
        // A pod that is quicker than its watcher, which may be between two slices, returns undisturbed: again, then.
        let mut tries = 0;
        while pods[0].incarnation() == was {
            tries += 1;
            assert!(tries <= 10, "it always returned before it was buried");
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
                       AND application_name IN ('podlock/a/liveness', 'podlock/a/control')";
            assert_eq!(db.client.query(sql, &[]).await.unwrap().len(), 2);
            eventually(SOON, "pod a is back, as whomever", || async {
                let sql =
                    "SELECT count(*) FROM studio_pod_events WHERE pod_id = 'a' AND kind IN ('joined', 'returned')";
                let comings = db.client.scalar::<i64>(sql, &[]).await;
                let expected = 1 + i64::from(tries);
                if comings == expected { Ok(()) } else { Err(format!("{comings} comings, {expected} due")) }
            })
            .await;
            db.client.armed("a", SOON).await;
        }
        let (reason, by) = db.client.session_end(was).await.expect("it was buried");
        assert_eq!(reason, "lost");
        assert!(matches!(by.as_deref(), Some("b" | "c")), "{by:?}");
        for run in &runs {
            let now = eventually(SOON, "another incarnation owns the run", || async {
                let now = db.client.run(*run).await;
                if now.attempt == 2 { Ok(now) } else { Err(format!("{now:?}")) }
            })
            .await;
            assert_ne!(now.owner, Some(was.as_uuid()));
        }
        // Each old handler met its fence, or was told.
        eventually(SOON, "the old attempts were stopped", || async {
            let fenced = audit.seen().iter().filter(|s| s.as_str() == "a a1: Fenced").count();
            if fenced == runs.len() { Ok(()) } else { Err(format!("{:?}", audit.seen())) }
        })
        .await;
        audit.let_finish();
        for run in &runs {
            assert_eq!(db.client.run_in_state(*run, "succeeded", SOON).await.attempt, 2);
            let ends = db
                .client
                .query("SELECT reason FROM studio_run_attempts WHERE run_id = $1 ORDER BY attempt", &[&run.as_uuid()])
                .await
                .unwrap();
            let ends: Vec<String> = ends.iter().map(|row| row.get(0)).collect();
            assert_eq!(ends, ["lost", "succeeded"]);
            let result: serde_json::Value =
                db.client.scalar("SELECT result FROM studio_runs WHERE run_id = $1", &[&run.as_uuid()]).await;
            assert_eq!(result, json!({"attempt": 2}));
        }
        assert_eq!(db.client.roster().await, ["a", "b", "c"]);
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

/// "A role's `statement_timeout` of a few ms: our own settings come first": a pod starts although the first statement
/// that takes a moment takes longer than that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roles_own_time_outs_end_no_statement_of_a_pod() {
    timed(async {
        let db = Db::new().await;
        let short = format!(
            "ALTER DATABASE \"{0}\" SET statement_timeout = '50ms'; ALTER DATABASE \"{0}\" SET lock_timeout = '50ms'; \
             ALTER DATABASE \"{0}\" SET idle_in_transaction_session_timeout = '50ms'",
            db.name
        );
        db.client.batch_execute(&short).await.unwrap();
        // What a new session reads first is locked for longer.
        db.client.batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_settings IN ACCESS EXCLUSIVE MODE").await.unwrap();
        let config = db.config("a");
        let starting = tokio::spawn(async move { start(config).await });
        eventually(SOON, "the pod's first session waits", || async {
            let sql = "SELECT count(*) FROM pg_locks l WHERE NOT l.granted \
                       AND l.relation = 'pg_catalog.pg_settings'::regclass";
            let waits: i64 = db.client.scalar(sql, &[]).await;
            if waits > 0 { Ok(()) } else { Err("nobody waits".to_owned()) }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        db.client.batch_execute("COMMIT").await.unwrap();
        let pod = starting.await.unwrap();
        let run_id = pod.start(NewRun::new("echo")).await.unwrap().run_id;
        db.client.run_in_state(run_id, "succeeded", SOON).await;
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// "`synchronous_commit` off by role lost 3 of 40 confirmed runs": every write of a pod waits for the disk; what is
/// weaker about standbys alone stays as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_confirms_is_on_the_disk_whatever_its_role_says() {
    timed(async {
        for (set, expected) in [("off", "on"), ("local", "local")] {
            let db = Db::new().await;
            let record = format!(
                "ALTER DATABASE \"{}\" SET synchronous_commit = {set}; CREATE TABLE seen (table_name text, setting \
                 text); GRANT INSERT ON seen TO PUBLIC; \
                 CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                   INSERT INTO public.seen VALUES (TG_TABLE_NAME, pg_catalog.current_setting('synchronous_commit')); \
                   RETURN NULL; END $$; \
                 CREATE TRIGGER record AFTER INSERT OR UPDATE ON studio_runs FOR EACH STATEMENT \
                 EXECUTE FUNCTION record(); \
                 CREATE TRIGGER record AFTER INSERT OR UPDATE ON studio_pods FOR EACH STATEMENT \
                 EXECUTE FUNCTION record()",
                db.name
            );
            db.client.batch_execute(&record).await.unwrap();
            let pod = start(db.config("a")).await;
            let run_id = pod.start(NewRun::new("echo")).await.unwrap().run_id;
            db.client.run_in_state(run_id, "succeeded", SOON).await;
            pod.shutdown(SOON).await.unwrap();
            let sql = "SELECT table_name || ' ' || setting FROM (SELECT DISTINCT table_name, setting FROM seen) s \
                       ORDER BY 1";
            let seen: Vec<String> = db.client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
            assert_eq!(seen, [format!("studio_pods {expected}"), format!("studio_runs {expected}")]);
        }
    })
    .await;
}

/// "Our client gives up at the same moment as the server's `statement_timeout` and drops its witness session for it":
/// the server ends the statement first, and the session, with its witness lock, is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_the_server_ends_for_its_time_out_costs_no_session() {
    timed(async {
        let db = Db::new().await;
        let statement_timeout = Duration::from_millis(1500);
        let pod = start(db.config("a").with(|c| c.statement_timeout = Some(statement_timeout))).await;
        db.client.armed("a", SOON).await;
        let control = backends(&db, "control").await;
        db.client.batch_execute("BEGIN; LOCK TABLE studio_pods IN ACCESS EXCLUSIVE MODE").await.unwrap();
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                     AND application_name = 'podlock/a/control' AND wait_event_type = 'Lock'";
        eventually(SOON, "the sweep waits", || async {
            let waiting: i64 = db.client.scalar(waits, &[]).await;
            if waiting == 1 { Ok(()) } else { Err(format!("{waiting} wait")) }
        })
        .await;
        tokio::time::sleep(statement_timeout * 2).await;
        db.client.batch_execute("COMMIT").await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(backends(&db, "control").await, control, "the control session is the same");
        db.client.armed("a", SOON).await;
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// An administrator lowers `log_min_duration_statement` under living pods: each slice of each watch would be a line of
/// the log. The slices become shorter; where no room is left there is no watch, and when there is room again, there is
/// one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reload_that_logs_slow_statements_the_watch_stays_below_it() {
    timed(async {
        let server = OwnServer::start(&[]).await;
        let db = Db::on(&server).await;
        let [a, b] = [start(db.config("quiet-a")).await, start(db.config("quiet-b")).await];
        db.client.armed("quiet-a", SOON).await;
        db.client.armed("quiet-b", SOON).await;
        let reload = async |ms: &str| {
            let set = format!("ALTER SYSTEM SET log_min_duration_statement = '{ms}'");
            db.client.batch_execute(&set).await.unwrap();
            db.client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        };
        let logged = || server.log_text().unwrap().lines().filter(|line| line.contains("studio_watch")).count();
        reload("300ms").await;
        eventually(SOON, "slices are logged no more", || async {
            let before = logged();
            tokio::time::sleep(Duration::from_secs(3)).await;
            let after = logged();
            // One of the old length that was under way at the reload, if no other, was logged.
            if before == after && after > 0 { Ok(()) } else { Err(format!("{before}, then {after} lines")) }
        })
        .await;
        reload("50ms").await;
        eventually(SOON, "the watch is off, and that is said", || async {
            let said = crate::support::trace::events("quiet-a").iter().any(|e| e["event"] == "push_off");
            let watch = db.client.backend("quiet-a", "watch").await;
            if said && watch.is_none() { Ok(()) } else { Err(format!("said {said}, {watch:?}")) }
        })
        .await;
        reload("-1").await;
        db.client.armed("quiet-a", SOON).await;
        for pod in [a, b] {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}
