//! What writers may rely on.

use std::time::Duration;

use podlock::{CHUNK_LIMIT, ErrorKind, StopReason};
use serde_json::json;

use super::{SOON, attach, chunk, end, rest, say, stored, take_away};
use crate::runs::stage::{Stage, act, behind_proxy, blocked};
use crate::support::proxy::Flow;
use crate::support::{Db, eventually, sql, timed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l5_a_stale_owners_append_is_fenced_and_leaves_no_row() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        say(&begun.run, &["mine"]).await;
        take_away(&db.client, run_id).await;
        // Taken before anybody here can know; refused by the server.
        let taken = begun.run.append("late").await;
        let told = begun.run.flush().await.expect_err("it is another's");
        assert!(told.is_fenced(), "{told}");
        assert_eq!(begun.run.stop_reason(), Some(StopReason::Fenced));
        assert!(taken.is_ok() || taken.is_err_and(|e| e.is_fenced()));
        for late in [
            begun.run.append("later").await.map(drop),
            begun.run.append_with_checkpoint("later", json!(1)).await.map(drop),
            begun.run.restart_stream().await,
            begun.run.continue_from(0).await,
        ] {
            assert!(late.expect_err("it is another's").is_fenced());
        }
        assert_eq!(stored(&db.client, run_id).await, [(1, 0, "mine".to_owned())]);
    })
    .await;
}

/// Where there is nothing to take back nothing is sent, and a run that was told to stop is refused all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_run_can_neither_restart_nor_go_on_with_an_empty_stream() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        a.cancel(run_id).await.unwrap();
        assert_eq!(begun.run.stop_reason(), Some(StopReason::Cancelled));
        assert!(begun.run.restart_stream().await.expect_err("it was cancelled").is_fenced());
        assert!(begun.run.continue_from(0).await.expect_err("it was cancelled").is_fenced());
    })
    .await;
}

/// As above, for the calls that change the row: they find it out at the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l5_a_stale_owner_can_neither_restart_nor_cut_the_stream() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        for nth in 0..3 {
            let run_id = a.start(act()).await.unwrap().run_id;
            let begun = stage.act_of(run_id).await;
            say(&begun.run, &["mine"]).await;
            take_away(&db.client, run_id).await;
            let late = match nth {
                0 => begun.run.restart_stream().await,
                1 => begun.run.continue_from(0).await,
                _ => begun.run.append_with_checkpoint("late", json!(1)).await.map(drop),
            };
            assert!(late.expect_err("it is another's").is_fenced(), "{nth}");
            assert_eq!(stored(&db.client, run_id).await, [(1, 0, "mine".to_owned())], "{nth}");
        }
    })
    .await;
}

/// Whoever has the row of one run locked, in `psql` or by a guard, holds up that run alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_run_holds_up_the_chunks_of_no_other() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let locked_id = a.start(act()).await.unwrap().run_id;
        let locked = stage.act().await;
        let other_id = a.start(act()).await.unwrap().run_id;
        let other = stage.act().await;
        let mut gate = sql::connect(&db.url).await;
        let gate = gate.transaction().await.unwrap();
        gate.execute("SELECT FROM studio_runs WHERE run_id = $1 FOR UPDATE", &[&locked_id.as_uuid()]).await.unwrap();
        locked.run.append("held").await.unwrap();
        say(&other.run, &["passes"]).await;
        assert_eq!(stored(&db.client, other_id).await.len(), 1);
        assert_eq!(stored(&db.client, locked_id).await.len(), 0);
        gate.rollback().await.unwrap();
        locked.run.flush().await.unwrap();
        assert_eq!(stored(&db.client, locked_id).await, [(1, 0, "held".to_owned())]);
    })
    .await;
}

/// What the server will not store is told of, at that run alone, until the stream is put right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_the_server_refuses_is_a_gap_that_every_later_call_tells_of() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let refuse = "ALTER TABLE studio_run_chunks ADD CONSTRAINT decent CHECK (body <> 'damn')";
        db.client.batch_execute(refuse).await.unwrap();
        let a = stage.pod(db.config("a")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let other_id = a.start(act()).await.unwrap().run_id;
        let other = stage.act().await;
        say(&begun.run, &["well"]).await;
        // Both in one statement, as far as that can be had.
        begun.run.append("damn").await.unwrap();
        other.run.append("hello").await.unwrap();
        other.run.flush().await.unwrap();
        assert_eq!(stored(&db.client, other_id).await.len(), 1);
        for error in [
            begun.run.flush().await.unwrap_err(),
            begun.run.append("and so on").await.unwrap_err(),
            begun.run.checkpoint(json!("rests on it")).await.unwrap_err(),
        ] {
            assert_eq!(error.sqlstate(), Some("23514"), "{error}");
            assert!(error.to_string().contains("gap"), "{error}");
        }
        begun.run.continue_from(1).await.unwrap();
        say(&begun.run, &["gosh"]).await;
        begun.done(json!(null));
        let seen = rest(&mut attach(&a, run_id).await).await;
        assert_eq!(seen, [chunk(1, 0, "well"), chunk(1, 1, "gosh"), end("succeeded")]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_a_chunk_is_refused_and_the_stream_goes_on() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        for bad in ["\0".to_owned(), "x".repeat(CHUNK_LIMIT + 1)] {
            assert_eq!(begun.run.append(bad).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let largest = "ü".repeat(CHUNK_LIMIT / 2);
        for body in ["", &largest, "'; DROP TABLE studio_runs; --", "\u{10FFFF}\\\n"] {
            begun.run.append(body).await.unwrap();
        }
        begun.done(json!(null));
        let seen = rest(&mut attach(&a, run_id).await).await;
        assert_eq!(super::whole(&seen), ["", &largest, "'; DROP TABLE studio_runs; --", "\u{10FFFF}\\\n"]);
    })
    .await;
}

/// A network that held chunks back lets them through when the stream has been cut before them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_arrive_after_the_stream_was_cut_are_not_stored() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage
            .pod(config.with(|c| (c.statement_timeout, c.pool_size) = (Some(Duration::from_millis(1_600)), 1)))
            .await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        // The server knows the statement on these connections: the next time it comes in one piece.
        say(&begun.run, &["known"]).await;
        let pids = "SELECT array_agg(pid) FROM pg_stat_activity \
                    WHERE datname = current_database() AND application_name = 'podlock/a/pool'";
        let given_up: Vec<i32> = db.client.scalar(pids, &[]).await;
        assert_eq!(proxy.present(&["pool"], Flow::Hole), given_up.len());
        say(&begun.run, &["held back, and sent again"]).await;
        begun.run.continue_from(1).await.unwrap();
        proxy.present(&["pool"], Flow::Pass);
        eventually(SOON, "what was held back has arrived, and its connection ended", || async {
            let left = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1)";
            match db.client.scalar::<i64>(left, &[&given_up]).await {
                0 => Ok(()),
                left => Err(format!("{left} connections")),
            }
        })
        .await;
        assert_eq!(stored(&db.client, run_id).await, [(1, 0, "known".to_owned())]);
        say(&begun.run, &["new"]).await;
        assert_eq!(stored(&db.client, run_id).await[1], (1, 1, "new".to_owned()));
    })
    .await;
}

/// A chunk is progress where it goes beyond all that was said before: what every attempt says anew is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_beyond_what_was_said_before_spare_a_run_the_crashes_of_its_owners() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let crashes = async || db.client.scalar::<i32>("SELECT crashes FROM studio_runs", &[]).await;
        let crash = async || {
            db.client
                .execute("UPDATE studio_runs SET crashes = 2 WHERE run_id = $1", &[&run_id.as_uuid()])
                .await
                .unwrap();
        };
        crash().await;
        say(&begun.run, &["0", "1"]).await;
        assert_eq!(crashes().await, 0);
        crash().await;
        begun.run.restart_stream().await.unwrap();
        say(&begun.run, &["0", "1"]).await;
        assert_eq!(crashes().await, 2, "as far as before");
        begun.run.continue_from(1).await.unwrap();
        say(&begun.run, &["1"]).await;
        assert_eq!(crashes().await, 2, "as far as before");
        say(&begun.run, &["2"]).await;
        assert_eq!(crashes().await, 0);
    })
    .await;
}

/// A dropped call leaves open whether it was done; the stream goes on behind it, if it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_dropped_append_with_checkpoint_the_stream_goes_on_behind_what_is_stored() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        for done in 0..20_u64 {
            let call = begun.run.append_with_checkpoint(format!("dropped {done}"), json!(done));
            let dropped = tokio::time::timeout(Duration::from_micros(300 * done), call).await;
            begun.run.append(format!("after {done} {}", dropped.is_ok())).await.unwrap();
        }
        begun.run.flush().await.unwrap();
        let chunks = stored(&db.client, run_id).await;
        for done in 0..20 {
            let after = chunks.iter().position(|c| c.2.starts_with(&format!("after {done} "))).expect("none is lost");
            let before = chunks.iter().position(|c| c.2 == format!("dropped {done}"));
            assert!(before.is_none_or(|before| before + 1 == after), "{chunks:?}");
            assert!(before.is_some() || chunks[after].2.ends_with("false"), "{chunks:?}");
        }
    })
    .await;
}

/// A large chunk behind a small one has to wait for room, and lets the flusher run meanwhile, even on one thread.
#[tokio::test(flavor = "current_thread")]
async fn a_chunk_that_has_to_wait_for_room_leaves_the_runtime_to_others() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        a.start(act()).await.unwrap();
        let begun = stage.act().await;
        let large = "x".repeat(600 * 1024);
        for body in ["a", &large, &large, "b", &large] {
            begun.run.append(body).await.unwrap();
        }
        begun.run.flush().await.unwrap();
        assert_eq!(db.client.scalar::<i64>("SELECT count(*) FROM studio_run_chunks", &[]).await, 5);
    })
    .await;
}

/// A network that held a cut back lets it through when new chunks stand behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_or_a_restart_that_arrives_late_takes_nothing_back() {
    timed(async {
        for restart in [false, true] {
            let (db, stage) = (Db::new().await, Stage::new());
            let (proxy, config) = behind_proxy(&db, "a").await;
            let a = stage
                .pod(config.with(|c| (c.statement_timeout, c.pool_size) = (Some(Duration::from_millis(1_600)), 1)))
                .await;
            let run_id = a.start(act()).await.unwrap().run_id;
            let begun = stage.act().await;
            let cut =
                async || if restart { begun.run.restart_stream().await } else { begun.run.continue_from(1).await };
            // The server knows the statement on this connection: the next time it comes in one piece.
            say(&begun.run, &["0", "1"]).await;
            cut().await.unwrap();
            say(&begun.run, &["2", "3"]).await;
            let pids = "SELECT array_agg(pid) FROM pg_stat_activity \
                        WHERE datname = current_database() AND application_name = 'podlock/a/pool'";
            let given_up: Vec<i32> = db.client.scalar(pids, &[]).await;
            assert_eq!(proxy.present(&["pool"], Flow::Hole), given_up.len());
            cut().await.expect("done on another connection");
            say(&begun.run, &["new", "newer"]).await;
            let before = stored(&db.client, run_id).await;
            proxy.present(&["pool"], Flow::Pass);
            eventually(SOON, "what was held back has arrived, and its connection ended", || async {
                let left = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1)";
                match db.client.scalar::<i64>(left, &[&given_up]).await {
                    0 => Ok(()),
                    left => Err(format!("{left} connections")),
                }
            })
            .await;
            assert_eq!(stored(&db.client, run_id).await, before, "restart: {restart}");
        }
    })
    .await;
}

/// The call is dropped while its statement waits for the row; the next one looks where the stream is before it has
/// ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_chunk_is_lost_behind_a_dropped_append_with_checkpoint_that_is_under_way() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(|c| c.statement_timeout = Some(Duration::from_secs(20)))).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        say(&begun.run, &["0"]).await;
        let mut gate = sql::connect(&db.url).await;
        let gate = gate.transaction().await.unwrap();
        gate.execute("SELECT FROM studio_runs WHERE run_id = $1 FOR UPDATE", &[&run_id.as_uuid()]).await.unwrap();
        let call = begun.run.append_with_checkpoint("dropped", json!(1));
        let waits = async {
            blocked(&db.client, "WITH mine AS%", 1).await;
        };
        tokio::select! {
            done = call => panic!("it has not waited: {done:?}"),
            () = waits => {}
        }
        let run = begun.run.clone();
        let next = tokio::spawn(async move { run.append("after").await });
        blocked(&db.client, "WITH had AS%", 1).await;
        gate.rollback().await.unwrap();
        assert_eq!(next.await.unwrap().unwrap(), 2);
        begun.run.flush().await.unwrap();
        let bodies: Vec<_> = stored(&db.client, run_id).await.into_iter().map(|c| c.2).collect();
        assert_eq!(bodies, ["0", "dropped", "after"]);
    })
    .await;
}

/// What cannot be mended by going on from beyond the gap stays told of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_not_forgotten_by_a_call_that_could_not_mend_it() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let refuse = "ALTER TABLE studio_run_chunks ADD CONSTRAINT decent CHECK (body <> 'damn')";
        db.client.batch_execute(refuse).await.unwrap();
        let a = stage.pod(db.config("a")).await;
        a.start(act()).await.unwrap();
        let begun = stage.act().await;
        begun.run.append("damn").await.unwrap();
        begun.run.flush().await.unwrap_err();
        assert_eq!(begun.run.continue_from(9).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(begun.run.flush().await.unwrap_err().sqlstate(), Some("23514"));
        begun.run.restart_stream().await.unwrap();
        say(&begun.run, &["gosh"]).await;
    })
    .await;
}
