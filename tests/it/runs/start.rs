//! Starting runs, and refusing to.

use std::time::Duration;

use podlock::{ErrorKind, NewRun, Outcome, Phase, Pod, Run};
use serde_json::json;

use super::stage::{SOON, START, Stage, act, attempts, behind_proxy, blocked, story, take_key, told};
use crate::support::proxy::Flow;
use crate::support::sql;
use crate::support::{Db, eventually, timed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owned_run_executes_on_the_pod_that_started_it_as_attempt_1() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let started = a.start(act().key("k").input(json!({"n": 1}))).await.unwrap();
        let here = stage.act().await;
        assert_eq!((here.run.id(), here.run.attempt(), here.pod()), (started.run_id, 1, "a"));
        assert_eq!((here.run.fence(), here.run.incarnation()), (started.fence, a.incarnation()));
        assert_eq!((here.run.kind(), here.run.key(), here.run.input()), ("act", Some("k"), &json!({"n": 1})));
        assert_eq!((here.run.saved(), here.run.stop_reason()), (None, None));
        assert!(started.fence.get() > 0);
        let row = db.client.run(started.run_id).await;
        assert_eq!((row.state.as_str(), row.owner, row.attempt), ("running", Some(a.incarnation().as_uuid()), 1));
        let attempts = attempts(&db.client, started.run_id).await;
        assert_eq!(attempts.iter().map(|a| (a.attempt, a.fence)).collect::<Vec<_>>(), [(1, started.fence.get())]);
        here.done(json!("ok"));
        db.client.run_in_state(started.run_id, "succeeded", SOON).await;
        assert_eq!(story(&db.client, started.run_id).await, told(&[("a", Some("succeeded"))]));
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unowned_run_is_taken_by_a_pod_with_a_handler() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let without = Pod::builder(db.config("a")).start().await.unwrap();
        let _with = stage.pod(db.config("b")).await;
        let run_id = without.submit(act().input(json!(7))).await.unwrap();
        let taken = stage.act().await;
        assert_eq!((taken.run.id(), taken.run.attempt(), taken.pod()), (run_id, 1, "b"));
        assert_eq!(taken.run.input(), &json!(7));
        assert!(taken.run.fence().get() > 0);
        taken.done(json!(null));
        db.client.run_in_state(run_id, "succeeded", SOON).await;
        assert_eq!(story(&db.client, run_id).await, told(&[("b", Some("succeeded"))]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_without_handler_is_left_alone_until_a_pod_with_one_boots() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let echo = |run: Run| async move { Ok(Outcome::Done(run.input().clone())) };
        let a = Pod::builder(db.config("a")).handler("echo", echo).start().await.unwrap();
        let foreign = a.submit(act()).await.unwrap();
        let later = a.submit(NewRun::new("echo")).await.unwrap();
        // The pass that took the later one saw the earlier one as well.
        db.client.run_in_state(later, "succeeded", SOON).await;
        let left = db.client.run(foreign).await;
        assert_eq!((left.owner, left.attempt, left.fence), (None, 0, 0));
        let _b = stage.pod(db.config("b")).await;
        let taken = stage.act().await;
        assert_eq!((taken.run.id(), taken.run.attempt(), taken.pod()), (foreign, 1, "b"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_of_a_key_is_refused_naming_the_running_run_until_that_has_ended() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let [a, b] = [stage.pod(db.config("a")).await, stage.pod(db.config("b")).await];
        let first = a.start(act().key("k")).await.unwrap();
        let begun = stage.act().await;
        for error in [
            a.start(act().key("k")).await.unwrap_err(),
            b.start(act().key("k")).await.unwrap_err(),
            b.submit(act().key("k")).await.unwrap_err(),
        ] {
            assert_eq!((error.kind(), error.run_id()), (ErrorKind::KeyBusy, Some(first.run_id)), "{error}");
            assert!(error.to_string().contains(&first.run_id.to_string()), "{error}");
        }
        a.start(NewRun::new("wait").key("k")).await.expect("a key is of one kind");
        let other = a.start(act().key("k2")).await.expect("another key");
        assert_eq!(stage.act().await.run.id(), other.run_id);
        assert_eq!(a.status().runs, 3);
        begun.done(json!(null));
        db.client.run_in_state(first.run_id, "succeeded", SOON).await;
        let again = b.start(act().key("k")).await.expect("free again");
        assert_eq!(stage.act().await.run.id(), again.run_id);
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_twenty_racing_starts_of_one_key_exactly_one_runs() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        // A connection for each start that waits, and two that are left to others.
        let config =
            |name| db.config(name).with(|c| (c.pool_size, c.statement_timeout) = (12, Some(Duration::from_secs(20))));
        let pods = [stage.pod(config("a")).await, stage.pod(config("b")).await];
        let mut gate = sql::connect(&db.url).await;
        let gate = gate.transaction().await.unwrap();
        // All of them have passed their own checks, and wait to see what becomes of the key.
        take_key(&gate, "k").await;
        let racers: Vec<_> = (0..20)
            .map(|i| {
                let pod = pods[i % 2].clone();
                tokio::spawn(async move { pod.start(act().key("k")).await })
            })
            .collect();
        blocked(&db.client, START, 20).await;
        gate.rollback().await.unwrap();
        let (mut won, mut lost) = (Vec::new(), Vec::new());
        for racer in racers {
            match racer.await.unwrap() {
                Ok(started) => won.push(started.run_id),
                Err(e) => lost.push(e),
            }
        }
        assert_eq!(won.len(), 1, "{won:?} {lost:?}");
        for error in &lost {
            assert_eq!((error.kind(), error.run_id()), (ErrorKind::KeyBusy, Some(won[0])), "{error}");
        }
        assert_eq!(stage.act().await.run.id(), won[0]);
        assert_eq!(db.client.scalar::<i64>("SELECT count(*) FROM studio_runs", &[]).await, 1);
        eventually(SOON, "the losers' places are free", || async {
            let runs = pods[0].status().runs + pods[1].status().runs;
            if runs == 1 { Ok(()) } else { Err(format!("{runs}")) }
        })
        .await;
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_handler_or_beyond_capacity_is_refused_and_leaves_no_row() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").capacity(1)).await;
        let error = a.start(NewRun::new("nobody-knows")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoHandler, "{error}");
        assert!(error.to_string().contains("nobody-knows") && error.to_string().contains("act"), "{error}");
        a.start(act()).await.unwrap();
        let held = stage.act().await;
        let error = a.start(act()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AtCapacity, "{error}");
        assert!(error.is_transient());
        assert_eq!(db.client.scalar::<i64>("SELECT count(*) FROM studio_runs", &[]).await, 1);
        held.done(json!(null));
        eventually(SOON, "room again", || async { a.start(act()).await.map_err(|e| e.to_string()) }).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_postgres_cannot_store_is_invalid_input() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let bad = [
            NewRun::new(""),
            NewRun::new("k".repeat(129)),
            NewRun::new("a\0b"),
            act().key(""),
            act().key("k".repeat(1025)),
            act().key("a\0b"),
            act().input(json!("\0")),
            act().input(json!({"deep": [{"er": "a\0"}]})),
            act().input(json!({"a\0": 1})),
            act().input((0..200).fold(json!(1), |inner, _| json!([inner]))),
        ];
        for new in bad {
            for error in [a.start(new.clone()).await.unwrap_err(), a.submit(new.clone()).await.unwrap_err()] {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{new:?}: {error}");
            }
        }
        assert_eq!(db.client.scalar::<i64>("SELECT count(*) FROM studio_runs", &[]).await, 0);
        assert_eq!(a.status().runs, 0);
        let odd =
            NewRun::new("'; DROP TABLE studio_runs; --").key("k".repeat(1024)).input(json!({"\u{1}": "é\u{1F600}"}));
        let run_id = a.submit(odd).await.expect("quotes and control characters are just text");
        assert_eq!(db.client.run(run_id).await.state, "running");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_pod_and_a_stopped_one_start_nothing() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        db.client.batch_execute("SELECT studio_drain('a')").await.unwrap();
        tokio::time::timeout(SOON, a.drain_requested()).await.expect("it is asked to drain");
        eventually(SOON, "it drains", || async {
            let phase = a.status().phase;
            if phase == Phase::Draining { Ok(()) } else { Err(phase.to_string()) }
        })
        .await;
        assert_eq!(a.start(act()).await.unwrap_err().kind(), ErrorKind::Draining);
        a.clone().shutdown(SOON).await.unwrap();
        assert_eq!(a.status().phase, Phase::Stopped);
        assert_eq!(a.start(act()).await.unwrap_err().kind(), ErrorKind::Stopped);
        assert_eq!(a.submit(act()).await.unwrap_err().kind(), ErrorKind::Stopped);
        assert_eq!(db.client.scalar::<i64>("SELECT count(*) FROM studio_runs", &[]).await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_pod_starts_and_claims_nothing_until_it_is_back() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let (proxy, config) = behind_proxy(&db, "a").await;
        let a = stage.pod(config).await;
        proxy.future(&["liveness"], Flow::Hole);
        db.client.terminate("a", "liveness").await;
        eventually(SOON, "a is detached", || async {
            let phase = a.status().phase;
            if phase == Phase::Detached { Ok(()) } else { Err(phase.to_string()) }
        })
        .await;
        let error = a.start(act()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Detached, "{error}");
        assert!(error.is_transient());
        let unowned = a.submit(act()).await.expect("for whoever takes it");
        assert_eq!((a.status().phase, db.client.run(unowned).await.owner), (Phase::Detached, None));
        proxy.all(&["liveness"], Flow::Pass);
        let taken = stage.act().await;
        assert_eq!((taken.run.id(), taken.run.attempt()), (unowned, 1));
    })
    .await;
}

/// An attempt without its run would be left for ever: retention finds attempts by their runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_attempts_of_a_run_that_is_deleted_by_hand_are_deleted() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let (gone, kept) = (a.start(act()).await.unwrap().run_id, a.start(act()).await.unwrap().run_id);
        for act in stage.acts(2).await {
            act.done(json!(null));
        }
        db.client.run_in_state(gone, "succeeded", SOON).await;
        db.client.execute("DELETE FROM studio_runs WHERE run_id = $1", &[&gone.as_uuid()]).await.unwrap();
        assert_eq!(story(&db.client, gone).await, told(&[]));
        assert_eq!(story(&db.client, kept).await.len(), 1);
    })
    .await;
}
