//! Many streams at once.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::iter;
use podlock::{NewRun, Outcome, Pod, Run};
use serde_json::json;
use tokio::sync::mpsc;

use super::{attach, end, rest, whole};
use crate::support::{Db, sql, timed};

const STREAMS: usize = 500;
const CHUNKS: usize = 20;
/// Starts and attaches that are under way together: no more than the pool has connections, so that none waits for one.
const AT_A_TIME: usize = 3;

/// Five hundred streams of one pod, read on another; and however many there are, readers are told at most
/// five times a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_streams_at_once_are_whole_and_few_notifications_tell_of_them() {
    timed(async {
        let db = Db::new().await;
        let talk = |run: Run| async move {
            for n in 0..CHUNKS {
                run.append(format!("{} {n}", run.input())).await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(Outcome::Done(json!(null)))
        };
        let config = db.config("a").with(|c| c.capacity = STREAMS);
        let a = Pod::builder(config).handler("talk", talk).start().await.unwrap();
        let b = db.pod("b").await;
        let (told, heard) = listen(&db).await;
        let began = Instant::now();
        let starts = (0..STREAMS).map(|n| a.start(NewRun::new("talk").input(json!(n))));
        let started: Vec<_> = iter(starts).buffered(AT_A_TIME).map(|run| run.expect("started").run_id).collect().await;
        let attaches = started.into_iter().map(|run_id| attach(&b, run_id));
        let readers: Vec<_> = iter(attaches).buffered(AT_A_TIME).collect().await;
        let reads = readers.into_iter().map(|mut reader| async move { rest(&mut reader).await });
        for (n, seen) in join_all(reads).await.into_iter().enumerate() {
            let all: Vec<String> = (0..CHUNKS).map(|i| format!("{n} {i}")).collect();
            assert_eq!(whole(&seen), all);
            assert_eq!(seen.last(), Some(&end("succeeded")));
        }
        let took = began.elapsed();
        drop(told);
        let count = heard.await.unwrap();
        let most = took.as_millis() / 300 + 3;
        assert!(u128::try_from(count).unwrap() <= most, "{count} notifications in {took:?}");
    })
    .await;
}

/// Counts the notifications on the streams' channel until the first value is dropped.
async fn listen(db: &Db) -> (mpsc::Sender<()>, tokio::task::JoinHandle<usize>) {
    let (client, mut notices) = sql::listening(&db.url).await;
    client.batch_execute("LISTEN podstream_public").await.expect("listening");
    let (told, mut over) = mpsc::channel(1);
    let heard = tokio::spawn(async move {
        let mut count = 0;
        loop {
            tokio::select! {
                Some(_) = notices.recv() => count += 1,
                _ = over.recv() => break,
            }
        }
        drop(client);
        count
    });
    (told, heard)
}
