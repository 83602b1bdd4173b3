//! Streams under faults; those that need processes are among the faults of `tests/chaos`.

use std::time::Duration;

use podlock::Run;
use serde_json::json;

use super::{attach, end, rest, stored, whole};
use crate::runs::stage::{Stage, act, behind_proxy};
use crate::support::proxy::Flow;
use crate::support::{Db, timed};

/// Says `count` numbers, a moment apart.
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
