//! What readers are handed.

use podlock::{ErrorKind, NewRun, RunId, StreamPosition};
use serde_json::json;

use super::{SOON, Seen, attach, chunk, end, next, rest, say, some, whole};
use crate::runs::stage::{Stage, act};
use crate::support::{Db, eventually, timed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attached_and_a_late_reader_on_any_pod_have_each_chunk_once_and_then_the_end() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (a, b) = (stage.pod(db.config("a")).await, stage.pod(db.config("b")).await);
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let (mut here, mut there) = (attach(&a, run_id).await, attach(&b, run_id).await);
        say(&begun.run, &["one ", "two "]).await;
        let first = [chunk(1, 0, "one "), chunk(1, 1, "two ")];
        assert_eq!(some(&mut here, 2).await, first);
        assert_eq!(some(&mut there, 2).await, first);
        let mut late = attach(&b, run_id).await;
        assert_eq!(some(&mut late, 2).await, first);
        // Not stored yet when the run ends: its end waits for it.
        assert_eq!(begun.run.append("three").await.unwrap(), 2);
        begun.done(json!(null));
        for reader in [&mut here, &mut there, &mut late] {
            assert_eq!(rest(reader).await, [chunk(1, 2, "three"), end("succeeded")]);
            assert_eq!(next(reader).await, None);
        }
        let mut afterwards = attach(&b, run_id).await;
        assert_eq!(whole(&rest(&mut afterwards).await).concat(), "one two three");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_that_restarts_is_a_reset_and_then_the_new_owners_chunks() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (a, b) = (stage.pod(db.config("a")).await, stage.pod(db.config("b")).await);
        let run_id = a.start(act()).await.unwrap().run_id;
        let first = stage.act().await;
        say(&first.run, &["he", "ha"]).await;
        let (mut two, mut none) = (attach(&b, run_id).await, attach(&b, run_id).await);
        assert_eq!(some(&mut two, 2).await, [chunk(1, 0, "he"), chunk(1, 1, "ha")]);
        assert_eq!(next(&mut none).await, Some(chunk(1, 0, "he")));
        drop(a);
        let second = stage.act().await;
        assert_eq!((second.pod(), second.run.attempt()), ("b", 2));
        // The second attempt appends without saying where the stream continues. So the stream restarts.
        say(&second.run, &["hello"]).await;
        second.done(json!(null));
        let new = [Seen::Reset(2, 0), chunk(2, 0, "hello"), end("succeeded")];
        assert_eq!(rest(&mut two).await, new);
        // `none` took one chunk of the two that its pod had read together. It still gets the other one first.
        assert_eq!(rest(&mut none).await, [&[chunk(1, 1, "ha")], &new[..]].concat());
        let mut late = attach(&b, run_id).await;
        assert_eq!(rest(&mut late).await, [chunk(2, 0, "hello"), end("succeeded")]);
    })
    .await;
}

/// The owner dies between a chunk and its checkpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_that_continues_takes_back_what_the_checkpoint_does_not_know_and_nothing_else() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (a, b) = (stage.pod(db.config("a")).await, stage.pod(db.config("b")).await);
        let run_id = a.start(act()).await.unwrap().run_id;
        let first = stage.act().await;
        let (mut far, mut near) = (attach(&b, run_id).await, attach(&b, run_id).await);
        assert_eq!(first.run.append("0").await.unwrap(), 0);
        assert_eq!(first.run.append_with_checkpoint("1", json!("after 1")).await.unwrap(), 1);
        assert_eq!(some(&mut near, 2).await, [chunk(1, 0, "0"), chunk(1, 1, "1")]);
        say(&first.run, &["2", "3"]).await;
        assert_eq!(some(&mut far, 4).await[3], chunk(1, 3, "3"));
        drop(a);
        let second = stage.act().await;
        assert_eq!((second.run.saved(), second.run.saved_seq()), (Some(&json!("after 1")), 2));
        let refused = second.run.continue_from(5).await.expect_err("there is no chunk 4");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
        second.run.continue_from(second.run.saved_seq()).await.unwrap();
        say(&second.run, &["II", "III"]).await;
        second.done(json!(null));
        let new = [chunk(1, 2, "II"), chunk(1, 3, "III"), end("succeeded")];
        assert_eq!(rest(&mut far).await, [&[Seen::Reset(1, 2)], &new[..]].concat());
        assert_eq!(rest(&mut near).await, new, "it never had what was taken back");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_was_cut_off_goes_on_where_it_was_on_another_pod() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (a, b) = (stage.pod(db.config("a")).await, stage.pod(db.config("b")).await);
        let run_id = a.start(act()).await.unwrap().run_id;
        let first = stage.act().await;
        say(&first.run, &["0", "1", "2"]).await;
        let mut reader = attach(&a, run_id).await;
        some(&mut reader, 2).await;
        let (two, text) = (reader.position(), reader.position().to_string());
        some(&mut reader, 1).await;
        let three = reader.position();
        let mut again = b.attach_after(run_id, text.parse().unwrap()).await.unwrap();
        assert_eq!(some(&mut again, 1).await, [chunk(1, 2, "2")]);
        drop(a);
        let cut_off = reader.next().await.expect_err("its pod has ended");
        assert_eq!(cut_off.kind(), ErrorKind::Stopped, "{cut_off}");
        let second = stage.act().await;
        second.run.continue_from(2).await.unwrap();
        say(&second.run, &["II"]).await;
        second.done(json!(null));
        let new = [chunk(1, 2, "II"), end("succeeded")];
        assert_eq!(rest(&mut b.attach_after(run_id, two).await.unwrap()).await, new);
        assert_eq!(
            rest(&mut b.attach_after(run_id, three).await.unwrap()).await,
            [&[Seen::Reset(1, 2)], &new[..]].concat()
        );
        let nowhere = b.attach_after(RunId::generate(), StreamPosition::START).await.expect_err("no such run");
        assert_eq!(nowhere.kind(), ErrorKind::NotFound);
    })
    .await;
}

/// What it does not take is not held for it: all but a page could vanish from the table unseen by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_a_page_at_most_and_holds_up_neither_the_writer_nor_other_readers() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (a, b) = (stage.pod(db.config("a")).await, stage.pod(db.config("b")).await);
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let (mut slow, mut quick) = (attach(&b, run_id).await, attach(&b, run_id).await);
        let reading = tokio::spawn(async move { rest(&mut quick).await.len() });
        say(&begun.run, &["first"]).await;
        assert_eq!(next(&mut slow).await, Some(chunk(1, 0, "first")));
        for n in 1..8_000 {
            begun.run.append(format!("chunk {n}")).await.unwrap();
        }
        begun.run.flush().await.unwrap();
        assert_eq!(next(&mut slow).await, Some(chunk(1, 1, "chunk 1")));
        begun.done(json!(null));
        assert_eq!(reading.await.unwrap(), 8_001);
        // More than a page is left, and none of it can come from the reader.
        db.client.execute("DELETE FROM studio_run_chunks WHERE seq >= $1", &[&4_000_i64]).await.unwrap();
        let left = rest(&mut slow).await;
        assert_eq!(left.last(), Some(&end("succeeded")));
        assert_eq!(left.len(), 4_000 - 2 + 1, "what was deleted came from the reader itself");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_have_gone_leave_nothing_behind_not_even_the_connection() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        say(&begun.run, &["0"]).await;
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                        AND application_name = 'podlock/a/stream'";
        let count = async |expected: i64| {
            eventually(SOON, "the session for streams", || async {
                let seen = db.client.scalar::<i64>(sessions, &[]).await;
                if seen == expected { Ok(()) } else { Err(format!("{seen} sessions")) }
            })
            .await;
        };
        count(0).await;
        let mut readers = Vec::new();
        for _ in 0..50 {
            let mut reader = attach(&a, run_id).await;
            assert_eq!(next(&mut reader).await, Some(chunk(1, 0, "0")));
            // Half of them wait when they go.
            if readers.len() % 2 == 0 {
                let waits = tokio::time::timeout(std::time::Duration::from_millis(5), reader.next()).await;
                assert!(waits.is_err(), "{waits:?}");
            }
            readers.push(reader);
        }
        count(1).await;
        drop(readers);
        count(0).await;
        // As good as new.
        let mut again = attach(&a, run_id).await;
        begun.done(json!(null));
        assert_eq!(rest(&mut again).await, [chunk(1, 0, "0"), end("succeeded")]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_is_told_however_a_run_ends() {
    timed(async {
        let db = Db::new().await;
        let (a, b) = (db.pod("a").await, db.pod("b").await);
        for (kind, state) in [("echo", "succeeded"), ("fail", "failed"), ("panic", "failed")] {
            let run_id = a.start(NewRun::new(kind)).await.unwrap().run_id;
            assert_eq!(rest(&mut attach(&b, run_id).await).await, [end(state)], "{kind}");
        }
        let run_id = a.start(NewRun::new("wait")).await.unwrap().run_id;
        let mut reader = attach(&b, run_id).await;
        let waits = tokio::spawn(async move { rest(&mut reader).await });
        a.operator().cancel(run_id).await.unwrap();
        assert_eq!(waits.await.unwrap(), [end("cancelled")]);
    })
    .await;
}
