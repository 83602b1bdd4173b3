//! A pod that comes back under its old name.

use std::time::{Duration, Instant};

use podlock::{Outcome, Pod, Run};
use serde_json::json;

use super::stage::{SOON, Stage, act, nudge, story, told};
use crate::patience::slack;
use crate::support::{Db, lease, timed};

/// Nobody may bury here: nobody has held its lock for `settle`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_restarted_under_its_old_name_gets_its_previous_runs_back_at_once() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let settle = Duration::from_secs(3600);
        let unsettled = |name: &str| db.config(name).with(|c| c.settle = Some(settle));
        let full = stage.pod(unsettled("full").capacity(1)).await;
        full.start(act()).await.unwrap();
        let held = stage.act().await;
        let echo = |run: Run| async move { Ok(Outcome::Done(run.input().clone())) };
        let _other = Pod::builder(unsettled("other-kinds")).handler("echo", echo).start().await.unwrap();
        let a = stage.pod(unsettled("a")).await;
        let before = a.incarnation();
        let mut runs = Vec::new();
        for i in 0..3 {
            runs.push(a.start(act().input(json!(i))).await.unwrap().run_id);
            stage.act().await.run.checkpoint(json!({"at": i})).await.unwrap();
        }
        drop(a);
        let again = Instant::now();
        let a = stage.pod(unsettled("a")).await;
        let mut resumed = stage.acts(3).await;
        assert!(again.elapsed() < slack(lease()), "back after {:?}", again.elapsed());
        resumed.sort_by_key(|act| act.run.id());
        for (i, act) in resumed.iter().enumerate() {
            assert_eq!((act.run.id(), act.run.attempt(), act.pod()), (runs[i], 2, "a"));
            assert_eq!((act.run.incarnation(), act.run.saved()), (a.incarnation(), Some(&json!({"at": i}))));
            assert_eq!(story(&db.client, runs[i]).await, told(&[("a", Some("replaced")), ("a", None)]));
            assert_eq!(db.client.run(runs[i]).await.crashes, 1, "it died with its process");
        }
        assert_eq!(db.client.session_end(before).await, Some(("replaced".into(), None)));
        nudge(&db.client).await;
        held.run.checkpoint(json!(1)).await.expect("the others' runs are theirs");
        stage.nothing_more_has_begun().await;
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_restarted_after_a_clean_stop_gets_its_runs_back_and_that_is_no_crash() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let before = a.incarnation();
        let run_id = a.start(act()).await.unwrap().run_id;
        drop(stage.act().await);
        a.shutdown(Duration::from_millis(20)).await.unwrap();
        let _a = stage.pod(db.config("a")).await;
        let resumed = stage.act().await;
        assert_eq!((resumed.run.id(), resumed.run.attempt()), (run_id, 2));
        assert_eq!(db.client.run(run_id).await.crashes, 0);
        assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("shutdown")), ("a", None)]));
        assert_eq!(db.client.session_end(before).await, Some(("shutdown".into(), None)));
        resumed.done(json!(null));
        db.client.run_in_state(run_id, "succeeded", SOON).await;
    })
    .await;
}
