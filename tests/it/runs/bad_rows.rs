//! L12: one row that no pod can work with is named and passed over, and keeps nobody from the others.

use std::time::Duration;

use podlock::{RunId, migrate};
use serde_json::json;

use super::stage::{SOON, Stage, nudge, orphan};
use crate::support::{Db, eventually, lease, start, timed, trace};

/// The newest version of the schema under which the rows of these tests could be written.
const BEFORE_THE_BOUNDS: i32 = 9;

/// A database whose rows were changed by hand before the schema had bounds for them.
async fn from_before_the_bounds() -> Db {
    let db = Db::empty().await;
    migrate::up(&db.config("m").with(|c| c.schema_knows = Some(BEFORE_THE_BOUNDS))).await.unwrap();
    db
}

async fn set(db: &Db, run_id: RunId, change: &str) {
    let sql = format!("UPDATE studio_runs SET {change} WHERE run_id = '{run_id}'");
    assert_eq!(db.client.execute(&sql, &[]).await.unwrap(), 1);
}

/// "`attempt` = 0 or 2147483647 by hand leaves 20 sound orphans beside it unclaimed for ever", and every other number
/// that makes a claim of the whole batch fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_run_whose_numbers_no_claim_can_take_is_quarantined_and_20_sound_ones_go_on() {
    timed(async {
        let (db, stage) = (from_before_the_bounds().await, Stage::new());
        let changes = [
            ("attempt = 0", "duplicate key"),
            ("attempt = 2147483647", "out of range"),
            ("attempt = 2147483646", "studio_runs_attempt_check"),
            ("attempt = -7", "studio_runs_attempt_check"),
            ("written = -1, stream_generation = 0", "studio_runs_positions_check"),
            ("fence = 4611686018427387904", "its fence is 4611686018427387904"),
            ("fence = 9223372036854775807", "its fence is 9223372036854775807"),
        ];
        let mut bad = Vec::new();
        for (change, why) in changes {
            let (run_id, _) = orphan(&db.client, "act").await;
            set(&db, run_id, change).await;
            bad.push((run_id, change, why));
        }
        // This one made the look for orphans fail. A pod that is alone leaves it for later, as one that brings pods
        // down.
        let (crashed, _) = orphan(&db.client, "act").await;
        set(&db, crashed, "crashes = 2147483647").await;
        let mut sound = Vec::new();
        for _ in 0..20 {
            sound.push(orphan(&db.client, "act").await.0);
        }
        let _a = stage.pod(db.config("bad-rows")).await;
        let acts = stage.acts(20).await;
        let mut begun: Vec<_> = acts.iter().map(|act| act.run.id()).collect();
        begun.sort_unstable();
        sound.sort_unstable();
        assert_eq!(begun, sound);
        for (run_id, change, why) in &bad {
            db.client.run_in_state(*run_id, "quarantined", SOON).await;
            let sql = "SELECT error FROM studio_runs WHERE run_id = $1";
            let error: String = db.client.scalar(sql, &[&run_id.as_uuid()]).await;
            assert!(error.starts_with("no pod can claim it") && error.contains(why), "{change}: {error}");
            let named = trace::events(&run_id.to_string()).into_iter().filter(|e| e["event"] == "quarantined");
            assert_eq!(named.count(), 1, "{change}: it is named once");
        }
        // What was repaired can be released, and begins.
        for (run_id, change, _) in &bad {
            db.client.execute("SELECT studio_release($1)", &[&run_id.as_uuid()]).await.unwrap();
            let act = stage.act().await;
            assert_eq!((act.run.id(), act.run.attempt()), (*run_id, 2), "{change}");
            act.run.checkpoint(json!(1)).await.unwrap();
            act.done(json!(null));
            db.client.run_in_state(*run_id, "succeeded", SOON).await;
        }
    })
    .await;
}

/// What cannot be claimed alone is passed over, and no run is ended for a fault that may be elsewhere: every claim
/// fails as long as the table of attempts refuses rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_where_no_claim_passes_no_run_is_quarantined() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        migrate::up(&db.config("m")).await.unwrap();
        for _ in 0..3 {
            orphan(&db.client, "act").await;
        }
        let refuse = "ALTER TABLE studio_run_attempts ADD CONSTRAINT broken CHECK (attempt < 2) NOT VALID";
        db.client.batch_execute(refuse).await.unwrap();
        let _a = stage.pod(db.config("broken-table")).await;
        eventually(SOON, "each run is named", || async {
            let named = trace::events("broken-table");
            let named = named.iter().filter(|e| e.get("event").is_some_and(|event| event == "passed_over")).count();
            if named >= 3 { Ok(()) } else { Err(format!("{named} are named")) }
        })
        .await;
        let running: i64 = db.client.scalar("SELECT count(*) FROM studio_runs WHERE state = 'running'", &[]).await;
        assert_eq!(running, 3);
        db.client.batch_execute("ALTER TABLE studio_run_attempts DROP CONSTRAINT broken").await.unwrap();
        // They are tried again after a lease.
        tokio::time::sleep(lease()).await;
        nudge(&db.client).await;
        stage.acts(3).await;
    })
    .await;
}

/// "A roster row named `E'bad\nname'` stops all burials and breaks 107 control sessions in 30 s."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_row_of_the_roster_whose_name_no_pod_can_have_is_named_once_and_breaks_no_session() {
    timed(async {
        let db = from_before_the_bounds().await;
        let bad = "INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, witness_key, \
                     liveness_pid, liveness_started) \
                   SELECT n, '', 0, gen_random_uuid(), length(n), -length(n), 1, now() \
                     FROM unnest(ARRAY[E'bad\\nname', E'worse\\u0085name!']) AS n";
        db.client.batch_execute(bad).await.unwrap();
        let [a, b] = db.settled_pods().await;
        db.client.armed("b", SOON).await;
        let control = db.client.backend("b", "control").await;
        let dead = a.incarnation();
        drop(a);
        eventually(SOON, "a is buried", || async {
            let end = db.client.session_end(dead).await;
            if end.is_some() { Ok(()) } else { Err(format!("{:?}", db.client.roster().await)) }
        })
        .await;
        // Sweeps go by.
        tokio::time::sleep(lease()).await;
        assert_eq!(db.client.backend("b", "control").await, control, "the control session was not broken");
        assert_eq!(db.client.roster().await.len(), 3, "the rows are left to people");
        let sql = "SELECT array_agg(incarnation::text) FROM studio_pods WHERE pod_id ~ '[[:cntrl:]]'";
        for incarnation in db.client.scalar::<Vec<String>>(sql, &[]).await {
            let named = trace::events(&incarnation);
            let by_b = named.iter().filter(|e| e["event"] == "misnamed" && e["by"] == "b").count();
            assert_eq!(by_b, 1, "{named:?}");
        }
        drop(b);
    })
    .await;
}

/// The tables say what the types say, for every row that is written from now on; and rows that are there already do not
/// keep a schema from its newest version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_are_proven_for_sound_tables_and_hold_for_new_rows_of_others() {
    timed(async {
        let bounds = "SELECT count(*) FILTER (WHERE convalidated), count(*) FROM pg_constraint WHERE conname IN \
                      ('studio_pods_name_check', 'studio_runs_attempt_check', 'studio_runs_crashes_check', \
                       'studio_runs_fence_check', 'studio_runs_positions_check', 'studio_run_attempts_attempt_check')";
        let sound = Db::new().await;
        migrate::up(&sound.config("m")).await.unwrap();
        let row = sound.client.query_one(bounds, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (6, 6));
        let db = from_before_the_bounds().await;
        let (run_id, _) = orphan(&db.client, "act").await;
        set(&db, run_id, "attempt = -1").await;
        migrate::up(&db.config("m")).await.expect("one bad row keeps nobody from migrating");
        let row = db.client.query_one(bounds, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (5, 6));
        let (other, _) = orphan(&db.client, "act").await;
        for change in
            ["attempt = -1", "attempt = 2147483647", "crashes = -1", "fence = 4611686018427387904", "written = -1"]
        {
            let sql = format!("UPDATE studio_runs SET {change} WHERE run_id = '{other}'");
            let refused = db.client.batch_execute(&sql).await.expect_err(change);
            assert_eq!(refused.code().map(|c| c.code()), Some("23514"), "{change}");
        }
        let pod = start(db.config("a")).await;
        let renamed = db.client.batch_execute("UPDATE studio_pods SET pod_id = E'a\\nb'").await.expect_err("refused");
        assert_eq!(renamed.code().map(|c| c.code()), Some("23514"));
        pod.shutdown(Duration::from_secs(5)).await.unwrap();
    })
    .await;
}
