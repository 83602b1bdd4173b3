//! L12: what does not fit in time is made smaller, not tried whole for ever.

use std::time::Duration;

use podlock::{RunId, migrate};
use serde_json::{Value, json};

use super::stage::{Act, SOON, Stage, behind_proxy, orphan};
use crate::support::proxy::Flow;
use crate::support::sql::Client;
use crate::support::{Db, eventually, timed, trace};

/// The link of the pool passes so many bytes a second.
const RATE: u32 = 4_000_000;
/// A statement has the least time that may be set.
const STATEMENT: Duration = Duration::from_millis(1500);

/// Gives a run a checkpoint of about so many bytes that the server cannot compress, and returns its digest.
async fn save(client: &Client, run_id: RunId, bytes: i32) -> String {
    let sql = "UPDATE studio_runs SET checkpoint = to_jsonb(( \
                 SELECT string_agg(md5($1::uuid::text || n), '') FROM generate_series(1, $2::int4 / 32) n)) \
               WHERE run_id = $1 RETURNING md5(checkpoint #>> '{}')";
    client.scalar(sql, &[&run_id.as_uuid(), &bytes]).await
}

/// "100 orphans with checkpoints of 1.2 MiB over a 20 MB/s link": here 24 of 0.5 MiB and one of 8 MiB, which alone does
/// not fit, over a link that passes 6 MB in the time of a statement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_orphans_whose_checkpoints_do_not_fit_in_time_are_all_begun_with_them() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        migrate::up(&db.config("m")).await.unwrap();
        let mut saved = Vec::new();
        for bytes in std::iter::repeat_n(512 << 10, 24).chain([8 << 20]) {
            let (run_id, _) = orphan(&db.client, "act").await;
            saved.push((run_id, save(&db.client, run_id, bytes).await));
        }
        let (proxy, config) = behind_proxy(&db, "slow-link").await;
        proxy.all(&["pool"], Flow::Rate(RATE));
        let _pod = stage.pod(config.with(|c| c.statement_timeout = Some(STATEMENT))).await;
        let mut acts: Vec<Act> = Vec::new();
        while acts.len() < saved.len() {
            let act = stage.act().await;
            acts.push(act);
        }
        for act in &acts {
            let (_, digest) = saved.iter().find(|(run_id, _)| *run_id == act.run.id()).expect("one of them");
            let text = act.run.saved().and_then(Value::as_str).expect("a checkpoint");
            let again: String = db.client.scalar("SELECT md5($1::text)", &[&text]).await;
            assert_eq!(again, *digest, "what was saved came whole");
            assert_eq!(act.run.attempt(), 2, "it was claimed once");
        }
    })
    .await;
}

/// Between the claim and the read a run may be claimed again, or be ended: what was read late begins nothing (L5).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l5_a_run_that_is_taken_away_before_its_checkpoint_was_read_does_not_begin() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        migrate::up(&db.config("m")).await.unwrap();
        let (first, _) = orphan(&db.client, "act").await;
        save(&db.client, first, 2 << 20).await;
        let (second, _) = orphan(&db.client, "act").await;
        save(&db.client, second, 9 << 20).await;
        let (proxy, config) = behind_proxy(&db, "overtaken").await;
        // The first one takes a second, the other four.
        proxy.all(&["pool"], Flow::Rate(2_000_000));
        let pod = stage.pod(config.with(|c| c.statement_timeout = Some(STATEMENT))).await;
        let begun = stage.act().await;
        assert_eq!(begun.run.id(), first);
        let row = db.client.run(second).await;
        assert_eq!(row.owner, Some(pod.incarnation().as_uuid()), "it is claimed, and being read");
        // Another takes it: here a pod of which nothing else is known.
        let take = "UPDATE studio_runs SET fence = nextval('studio_fence'), attempt = attempt + 1, owner_pod = \
                    'other', owner_incarnation = (SELECT incarnation FROM other) WHERE run_id = $1";
        let other = "WITH other AS (INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, \
                       witness_key, liveness_pid, liveness_started) \
                     VALUES ('other', '', 0, gen_random_uuid(), 1, 2, 1, now()) RETURNING incarnation)";
        db.client.execute(&format!("{other} {take}"), &[&second.as_uuid()]).await.unwrap();
        proxy.all(&["pool"], Flow::Pass);
        eventually(SOON, "the place of the run is free", || async {
            if pod.status().runs == 1 { Ok(()) } else { Err(format!("{:?}", pod.status())) }
        })
        .await;
        begun.done(json!(null));
        db.client.run_in_state(first, "succeeded", SOON).await;
        stage.nothing_more_has_begun().await;
        let row = db.client.run(second).await;
        assert_eq!((row.owner_pod.as_deref(), row.attempt), (Some("other"), 3));
    })
    .await;
}

/// A claim that takes too long, whatever makes it so, is tried in halves, and a warning says what was tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_claim_that_times_out_is_halved_and_said() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        migrate::up(&db.config("m")).await.unwrap();
        // Each run costs the claim 60 ms: 60 of them do not fit into one statement.
        let slow = "CREATE FUNCTION test_slow() RETURNS trigger LANGUAGE plpgsql AS \
                      $$ BEGIN PERFORM pg_catalog.pg_sleep(0.06); RETURN NULL; END $$; \
                    CREATE TRIGGER test_slow AFTER INSERT ON studio_run_attempts FOR EACH ROW WHEN (NEW.attempt > 1) \
                      EXECUTE FUNCTION test_slow()";
        db.client.batch_execute(slow).await.unwrap();
        for _ in 0..60 {
            orphan(&db.client, "act").await;
        }
        let _pod = stage.pod(db.config("halves").with(|c| c.statement_timeout = Some(STATEMENT))).await;
        let mut runs = Vec::new();
        while runs.len() < 60 {
            let act = stage.act().await;
            assert_eq!(act.run.attempt(), 2);
            runs.push(act);
        }
        let said = trace::events("halves");
        let said: Vec<_> =
            said.iter().filter(|e| e.get("event").is_some_and(|event| event == "claim_failed")).collect();
        assert!(!said.is_empty() && said[0]["tried"] == "60" && said[0]["level"] == "WARN", "{said:?}");
    })
    .await;
}
