//! "A write that is too large or too slow": it is refused by a limit, or given up while smaller ones pass, and its
//! handler hears of it.

use std::time::Duration;

use podlock::{ERROR_LIMIT, ErrorKind, StreamEvent};
use serde_json::json;

use super::stage::{SOON, Stage, act, behind_proxy, story, told, whole_run};
use crate::support::proxy::Flow;
use crate::support::{Db, sql, timed};

const STATEMENT: Duration = Duration::from_millis(1500);
const LATE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_or_an_input_above_its_limit_is_refused_and_an_error_text_is_cut() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let limits = |c: &mut podlock::Config| (c.checkpoint_max_bytes, c.input_max_bytes) = (1000, 500);
        let a = stage.pod(db.config("a").with(limits)).await;
        let started = a.start(act().input("x".repeat(498))).await.expect("500 bytes with its quotes");
        let begun = stage.act().await;
        let before = whole_run(&db.client, started.run_id).await;
        let large = json!("x".repeat(999));
        for refused in
            [begun.run.checkpoint(large.clone()).await, begun.run.append_with_checkpoint("c", large).await.map(drop)]
        {
            let error = refused.expect_err("too large");
            assert_eq!((error.kind(), error.run_id()), (ErrorKind::TooLarge, Some(started.run_id)));
            let words = error.to_string();
            assert!(words.contains("1001 bytes") && words.contains("1000 (checkpoint_max_bytes)"), "{error}");
            assert!(!error.may_have_been_done());
        }
        assert_eq!(whole_run(&db.client, started.run_id).await, before, "nothing was written");
        begun.run.checkpoint("x".repeat(998)).await.expect("that is no more");
        let mut client = sql::connect(&db.url).await;
        let txn = client.transaction().await.unwrap();
        let large = || act().input("x".repeat(499));
        let refused = [
            a.start(large()).await.map(drop),
            a.submit(large()).await.map(drop),
            a.start_in_txn(&txn, large()).await.map(drop),
            a.submit_in_txn(&txn, large()).await.map(drop),
        ];
        for error in refused.map(|refused| refused.expect_err("too large")) {
            assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
            assert!(error.to_string().contains("input_max_bytes"), "{error}");
        }
        txn.rollback().await.unwrap();
        assert_eq!(db.client.scalar::<i64>("SELECT count(*) FROM studio_runs", &[]).await, 1);
        begun.fail("y".repeat(ERROR_LIMIT * 3));
        db.client.run_in_state(started.run_id, "failed", SOON).await;
        let error: String = db.client.scalar("SELECT error FROM studio_runs", &[]).await;
        assert!(error.len() <= ERROR_LIMIT && error.starts_with("yyy") && error.contains("bytes more were cut"));
    })
    .await;
}

/// The bug: a checkpoint of 100 MiB was sent again for ever, and its handler got no error. Here 8 MiB go over a link
/// that passes 1.5 MB before the statement times out. The run can go on with a smaller checkpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_checkpoint_that_does_not_fit_in_time_is_given_up_while_small_writes_pass() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config.with(|c| c.statement_timeout = Some(STATEMENT))).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        begun.run.checkpoint(json!("small")).await.unwrap();
        proxy.all(&["pool"], Flow::Rate(1_000_000));
        let large = begun.run.checkpoint("x".repeat(8 << 20));
        let error = tokio::time::timeout(LATE, large).await.expect("it hears of it").expect_err("too slow");
        assert_eq!((error.kind(), error.run_id()), (ErrorKind::TooSlow, Some(run_id)), "{error}");
        assert!(error.to_string().contains("3 times") && !error.is_transient(), "{error}");
        assert!(error.may_have_been_done(), "no reply came: {error}");
        assert_eq!(begun.run.stop_reason(), None, "the run goes on");
        begun.run.checkpoint(json!("smaller")).await.expect("what is smaller passes");
        // A result that is too large to send makes the run fail, and the error says so. podlock starts no other
        // attempt, because that attempt would end with the same result.
        begun.done("x".repeat(8 << 20));
        db.client.run_in_state(run_id, "failed", LATE).await;
        let error: String = db.client.scalar("SELECT error FROM studio_runs", &[]).await;
        assert!(error.contains("its end could not be stored") && error.contains("did not end in time"), "{error}");
        assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("failed"))]));
    })
    .await;
}

/// If small writes do not end in time either, the size of the write is not the reason. So the write waits, as for a
/// database that is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_row_somebody_holds_waits_however_often_it_times_out() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(|c| c.statement_timeout = Some(STATEMENT))).await;
        a.start(act()).await.unwrap();
        let begun = stage.act().await;
        let mut holder = sql::connect(&db.url).await;
        let txn = holder.transaction().await.unwrap();
        txn.batch_execute("SELECT FROM studio_runs FOR UPDATE").await.unwrap();
        let mut saved = std::pin::pin!(begun.run.checkpoint(json!(1)));
        // Time for five tries, each with its small write.
        let waited = tokio::time::timeout(STATEMENT * 10, &mut saved).await;
        assert!(waited.is_err(), "it waits: {waited:?}");
        txn.rollback().await.unwrap();
        saved.await.expect("saved");
    })
    .await;
}

/// Chunks that together do not fit in time go in halves; and readers are handed less at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_stream_passes_a_link_on_which_its_batches_do_not_fit() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config.with(|c| c.statement_timeout = Some(STATEMENT))).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        begun.run.append("first").await.unwrap();
        begun.run.flush().await.unwrap();
        proxy.all(&["pool"], Flow::Rate(400_000));
        let body = "z".repeat(16 << 10);
        for _ in 0..60 {
            begun.run.append(body.as_str()).await.unwrap();
        }
        tokio::time::timeout(LATE, begun.run.flush()).await.expect("they are stored in the end").expect("stored");
        let chunks: i64 = db.client.scalar("SELECT count(*) FROM studio_run_chunks", &[]).await;
        assert_eq!(chunks, 61);
        // Eight readers, each at a place of its own, to whom one look would bring 2 MB.
        let mut readers = tokio::task::JoinSet::new();
        for at in 0..8_u64 {
            let mut attached = a.attach(run_id).await.unwrap();
            readers.spawn(async move {
                let mut seen = 0;
                while seen < 61 - at {
                    match attached.next().await.expect("readable").expect("it goes on") {
                        StreamEvent::Chunk { seq, .. } => {
                            assert_eq!(seq, seen);
                            seen += 1;
                        }
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
        tokio::time::timeout(LATE, readers.join_all()).await.expect("all have read all");
    })
    .await;
}
