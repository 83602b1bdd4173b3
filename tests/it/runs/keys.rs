//! A key leads to its run: the one that is running, else the newest that has ended.

use podlock::{ErrorKind, Incarnation, NewRun, RunId};
use serde_json::json;

use super::stage::{SOON, Stage, act};
use crate::support::{Db, timed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_leads_to_its_running_run_and_else_to_the_newest_that_has_ended() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let [a, b] = [stage.pod(db.config("a")).await, stage.pod(db.config("b")).await];
        let operator = b.operator();
        let latest = async || operator.latest("act", "k").await.unwrap().map(|run| (run.row.run_id, run.row.state));
        assert_eq!(latest().await, None);
        let missing = b.attach_key("act", "k").await.expect_err("there is none");
        assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");

        let mut newest = None;
        for n in 0..3 {
            let run_id = a.start(act().key("k")).await.unwrap().run_id;
            // A run of the same kind with another key is never returned.
            let other = a.start(act().key("other")).await.unwrap().run_id;
            let acts = stage.acts(2).await;
            assert_eq!(latest().await, Some((run_id, "running".to_owned())), "{n}");
            // The running run is found even if it seems older than one that has ended: the clock was set back.
            db.client
                .execute(
                    "UPDATE studio_runs SET created_at = created_at - interval '1 hour' WHERE run_id = $1",
                    &[&run_id.as_uuid()],
                )
                .await
                .unwrap();
            assert_eq!(b.attach_key("act", "k").await.unwrap().run_id(), run_id, "from any pod");
            db.client
                .execute("UPDATE studio_runs SET created_at = now() WHERE run_id = $1", &[&run_id.as_uuid()])
                .await
                .unwrap();
            for act in acts {
                act.done(json!(n));
            }
            db.client.run_in_state(run_id, "succeeded", SOON).await;
            db.client.run_in_state(other, "succeeded", SOON).await;
            newest = Some((run_id, "succeeded".to_owned()));
            assert_eq!(latest().await, newest, "{n}");
        }
        let (run_id, _) = newest.unwrap();
        let mut attached = b.attach_key("act", "k").await.unwrap();
        assert_eq!(attached.run_id(), run_id);
        assert!(attached.next().await.unwrap().is_some(), "its end");
    })
    .await;
}

/// The lookup of what has ended reads the index, however many runs there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_run_of_a_key_is_found_by_an_index() {
    timed(async {
        let db = Db::new().await;
        let many = "INSERT INTO studio_runs (run_id, kind, key, state, finished_at) \
                    SELECT gen_random_uuid(), 'act', 'k' || n, 'succeeded', now() FROM generate_series(1, 5000) AS n";
        db.client.batch_execute(&format!("{many}; ANALYZE studio_runs")).await.unwrap();
        let sql = "EXPLAIN SELECT run_id FROM studio_runs WHERE kind = 'act' AND key = 'k7' \
                   ORDER BY created_at DESC, run_id DESC LIMIT 1";
        let plan: Vec<String> = db.client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert!(plan.iter().any(|line| line.contains("studio_runs_by_key")), "{plan:#?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_key_says_whether_its_run_waits_for_a_pod() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        // It has no handler for the runs that are made by hand, so that nobody takes them.
        let pod = stage.pod(db.config("a")).await;
        pod.start(act().key("k")).await.unwrap();
        let _begun = stage.act().await;
        let refused = async |new: NewRun| {
            let error = pod.submit(new).await.expect_err("the key is taken");
            assert_eq!(error.kind(), ErrorKind::KeyBusy);
            error
        };
        let held = refused(act().key("k")).await.to_string();
        assert!(held.contains("is running; no run was started") && !held.contains("resumes"), "{held}");
        for (owner, words) in [
            (
                Some(Incarnation::generate().as_uuid()),
                "its owner is gone, and a pod with a handler and room resumes it",
            ),
            (None, "nobody owns it yet, and a pod with a handler and room takes it up"),
        ] {
            let run_id = RunId::generate();
            let sql = "INSERT INTO studio_runs (run_id, kind, key, owner_pod, owner_incarnation, fence, attempt) \
                       SELECT $1, 'foreign', $3, CASE WHEN $2::uuid IS NOT NULL THEN 'ghost' END, $2, 1, 1";
            db.client.execute(sql, &[&run_id.as_uuid(), &owner, &run_id.to_string()]).await.unwrap();
            let error = refused(NewRun::new("foreign").key(run_id.to_string())).await;
            assert_eq!(error.run_id(), Some(run_id));
            assert!(error.to_string().contains(words), "{error}");
        }
    })
    .await;
}
