//! Streams under faults; those that need processes are among the faults of `tests/chaos`.

use std::time::Duration;

use podlock::Run;
use serde_json::json;

use super::{Seen, attach, chunk, end, rest, say, some, stored, whole};
use crate::runs::stage::{Stage, act, behind_proxy};
use crate::support::proxy::Flow;
use crate::support::{Db, timed};

/// Appends `count` numbers to the run's stream, 5 ms apart.
async fn count_up(run: &Run, count: usize) {
    for n in 0..count {
        run.append(n.to_string()).await.expect("appended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|n| n.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_whose_listening_session_is_terminated_over_and_over_has_everything() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (a, b) = (stage.pod(db.config("a")).await, stage.pod(db.config("b")).await);
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let mut reader = attach(&b, run_id).await;
        let reading = tokio::spawn(async move { rest(&mut reader).await });
        let run = begun.run.clone();
        let saying = tokio::spawn(async move { count_up(&run, 300).await });
        let mut ended = 0;
        let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                         WHERE datname = current_database() AND application_name = 'podlock/b/stream'";
        while !saying.is_finished() {
            ended += db.client.scalar::<i64>(terminate, &[]).await;
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        saying.await.unwrap();
        assert!(ended > 2, "it was terminated {ended} times");
        begun.done(json!(null));
        let seen = reading.await.unwrap();
        assert_eq!((whole(&seen), seen.last()), (numbers(300), Some(&end("succeeded"))));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_whose_replies_are_lost_are_stored_once_and_in_order() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let run = begun.run.clone();
        let saying = tokio::spawn(async move { count_up(&run, 300).await });
        let mut cut = 0;
        while !saying.is_finished() {
            tokio::time::sleep(Duration::from_millis(60)).await;
            proxy.present(&["pool"], Flow::Mute);
            tokio::time::sleep(Duration::from_millis(40)).await;
            cut += proxy.present(&["pool"], Flow::Cut);
        }
        saying.await.unwrap();
        assert!(cut > 2, "{cut} connections were cut");
        begun.run.flush().await.unwrap();
        let chunks: Vec<_> = stored(&db.client, run_id).await.into_iter().map(|c| c.2).collect();
        assert_eq!(chunks, numbers(300));
    })
    .await;
}

/// A failover to a standby that lagged: the chunks that it lacks are gone, and no gap is made of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_the_database_took_back_goes_on_in_a_new_attempt_without_a_gap() {
    timed(async {
        for with_checkpoint in [false, true] {
            let (db, stage) = (Db::new().await, Stage::new());
            let a = stage.pod(db.config("a")).await;
            let run_id = a.start(act()).await.unwrap().run_id;
            let begun = stage.act().await;
            begun.run.append_with_checkpoint("0", json!(0)).await.unwrap();
            say(&begun.run, &["1", "2"]).await;
            let mut reader = attach(&a, run_id).await;
            some(&mut reader, 3).await;
            db.client.batch_execute("DELETE FROM studio_run_chunks WHERE seq > 0").await.unwrap();
            let adrift = if with_checkpoint {
                begun.run.append_with_checkpoint("3", json!(3)).await.map(drop)
            } else {
                begun.run.append("3").await.unwrap();
                begun.run.flush().await
            };
            assert!(adrift.expect_err("it would leave a gap").is_fenced());
            begun.fail("told to stop");
            let again = stage.act().await;
            assert_eq!((again.run.attempt(), again.run.saved_seq()), (2, 1));
            again.run.continue_from(again.run.saved_seq()).await.unwrap();
            say(&again.run, &["I", "II", "III"]).await;
            again.done(json!(null));
            let seen = rest(&mut reader).await;
            assert_eq!(seen[0], Seen::Reset(1, 1));
            assert_eq!(whole(&[&[chunk(1, 0, "0")], &seen[1..]].concat()), ["0", "I", "II", "III"]);
        }
    })
    .await;
}
