//! Sessions ended under a living pod.

use std::time::Duration;

use podlock::NewRun;
use serde_json::json;

use crate::patience::SOON;
use crate::support::faults::{Audit, audited};
use crate::support::{Db, LEASE, eventually, start, timed};

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
        tokio::time::sleep(LEASE + Duration::from_millis(200)).await;
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
        tokio::time::sleep(LEASE + Duration::from_millis(200)).await;
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
