//! Runs that are started in the caller's transaction.

use podlock::{ErrorKind, NewRun};
use serde_json::json;

use super::stage::{CLAIM, Pause, SOON, Stage, act, blocked, story, told};
use crate::support::{Db, sql, timed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_a_committed_transaction_runs_on_its_pod_as_attempt_1() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let [a, _b] = [stage.pod(db.config("a")).await, stage.pod(db.config("b")).await];
        let mut client = sql::connect(&db.url).await;
        client.batch_execute("CREATE TABLE orders (run uuid)").await.unwrap();
        let txn = client.transaction().await.unwrap();
        let run_id = a.start_in_txn(&txn, act().key("k").input(json!(3))).await.unwrap();
        txn.execute("INSERT INTO orders VALUES ($1)", &[&run_id.as_uuid()]).await.unwrap();
        assert_eq!(db.client.scalar::<i64>("SELECT count(*) FROM studio_runs", &[]).await, 0, "not before the commit");
        txn.commit().await.unwrap();
        let begun = stage.act().await;
        assert_eq!((begun.run.id(), begun.run.attempt(), begun.pod()), (run_id, 1, "a"));
        assert_eq!((begun.run.input(), begun.run.key()), (&json!(3), Some("k")));
        begun.done(json!(null));
        db.client.run_in_state(run_id, "succeeded", SOON).await;
        assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("succeeded"))]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_a_rolled_back_transaction_never_was() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let mut client = sql::connect(&db.url).await;
        let txn = client.transaction().await.unwrap();
        let never = a.start_in_txn(&txn, act().key("k")).await.unwrap();
        let nor = a.submit_in_txn(&txn, act()).await.unwrap();
        txn.rollback().await.unwrap();
        // Its key is free, and a later pass begins the later run alone.
        let later = a.submit(act().key("k")).await.unwrap();
        assert_eq!(stage.act().await.run.id(), later);
        assert!(later != never && later != nor);
        assert_eq!(db.client.scalar::<i64>("SELECT count(*) FROM studio_runs", &[]).await, 1);
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unowned_run_of_a_transaction_is_taken_once_it_commits() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let mut client = sql::connect(&db.url).await;
        let txn = client.transaction().await.unwrap();
        let run_id = a.submit_in_txn(&txn, act()).await.unwrap();
        a.start(NewRun::new("echo")).await.unwrap();
        stage.nothing_more_has_begun().await;
        txn.commit().await.unwrap();
        let begun = stage.act().await;
        assert_eq!((begun.run.id(), begun.run.attempt()), (run_id, 1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_runs_it_if_the_pod_dies_after_the_commit_before_taking_it_up() {
    timed(async {
        let db = Db::new().await;
        let stage = Stage::new();
        let pause = Pause::install(&db).await;
        let a = stage.pod(Pause::config(&db, "a", 1)).await;
        let b = stage.pod(db.config("b")).await;
        let mut client = sql::connect(&db.url).await;
        let txn = client.transaction().await.unwrap();
        let run_id = a.start_in_txn(&txn, act()).await.unwrap();
        txn.commit().await.unwrap();
        blocked(&db.client, CLAIM, 1).await;
        let dead = a.incarnation();
        drop(a);
        db.client.run_owned_by(run_id, b.incarnation(), SOON).await;
        let begun = stage.act().await;
        assert_eq!((begun.run.id(), begun.run.attempt(), begun.pod()), (run_id, 1, "b"));
        assert_eq!(db.client.session_end(dead).await.unwrap().0, "lost");
        // The dead pod's claim, which was on its way, now goes on: it must find nothing.
        pause.release(1).await;
        blocked(&db.client, CLAIM, 0).await;
        begun.run.checkpoint(json!(1)).await.expect("still the owner");
        begun.done(json!(null));
        db.client.run_in_state(run_id, "succeeded", SOON).await;
        assert_eq!(story(&db.client, run_id).await, told(&[("b", Some("succeeded"))]));
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_leaves_the_callers_transaction_usable() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").capacity(2)).await;
        let first = a.start(act().key("k")).await.unwrap();
        let mut client = sql::connect(&db.url).await;
        let txn = client.transaction().await.unwrap();
        for error in [a.start_in_txn(&txn, act().key("k")).await, a.submit_in_txn(&txn, act().key("k")).await] {
            let error = error.unwrap_err();
            assert_eq!((error.kind(), error.run_id()), (ErrorKind::KeyBusy, Some(first.run_id)), "{error}");
        }
        assert_eq!(a.start_in_txn(&txn, NewRun::new("no")).await.unwrap_err().kind(), ErrorKind::NoHandler);
        assert_eq!(a.start_in_txn(&txn, act().input("\0")).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        let second = a.start_in_txn(&txn, act().key("k2")).await.expect("the transaction goes on");
        txn.commit().await.unwrap();
        let begun: Vec<_> = stage.acts(2).await.iter().map(|act| act.run.id()).collect();
        assert_eq!(begun, [first.run_id, second]);
        let txn = client.transaction().await.unwrap();
        assert_eq!(a.start_in_txn(&txn, act()).await.unwrap_err().kind(), ErrorKind::AtCapacity);
        stage.nothing_more_has_begun().await;
    })
    .await;
}
