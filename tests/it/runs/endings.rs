//! How attempts end: by their handler's word, its panic, a yield or a cancellation.

use std::fmt;
use std::time::{Duration, Instant};

use podlock::{Cancelled, NewRun, Outcome, Pod, Run, RunId, StopReason};
use serde_json::{Value, json};

use super::stage::{SOON, Stage, act, story, told};
use crate::support::sql::Client;
use crate::support::{Db, eventually, lease, timed};

async fn ending(client: &Client, run_id: RunId) -> (String, Option<Value>, Option<String>) {
    let sql = "SELECT state, result, error FROM studio_runs WHERE run_id = $1";
    let row = client.query_one(sql, &[&run_id.as_uuid()]).await.unwrap();
    (row.get(0), row.get(1), row.get(2))
}

#[derive(Debug)]
struct Outer(std::io::Error);

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the order was not shipped")
    }
}

impl std::error::Error for Outer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_succeeds_with_its_result_or_fails_with_its_errors_text() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let good = a.start(act()).await.unwrap().run_id;
        stage.act().await.done(json!({"shipped": [1, 2]}));
        db.client.run_in_state(good, "succeeded", SOON).await;
        assert_eq!(ending(&db.client, good).await, ("succeeded".into(), Some(json!({"shipped": [1, 2]})), None));
        let bad = a.start(act()).await.unwrap().run_id;
        stage.act().await.fail(Outer(std::io::Error::other("the lorry broke down")));
        db.client.run_in_state(bad, "failed", SOON).await;
        let text = "the order was not shipped: the lorry broke down".to_owned();
        assert_eq!(ending(&db.client, bad).await, ("failed".into(), None, Some(text)));
        assert_eq!(story(&db.client, bad).await, told(&[("a", Some("failed"))]));
        let finished: i64 =
            db.client.scalar("SELECT count(*) FROM studio_runs WHERE finished_at IS NOT NULL", &[]).await;
        assert_eq!(finished, 2);
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_fails_its_run_and_the_pod_works_on() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").capacity(1)).await;
        let run_id = a.start(NewRun::new("panic")).await.unwrap().run_id;
        db.client.run_in_state(run_id, "failed", SOON).await;
        let (_, _, error) = ending(&db.client, run_id).await;
        assert_eq!(error.as_deref(), Some("the handler panicked: as asked"));
        assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("failed"))]));
        eventually(SOON, "its place is free", || async { a.start(act()).await.map_err(|e| e.to_string()) }).await;
        stage.act().await.done(json!(null));
    })
    .await;
}

/// A handler whose very call panics, before it gave a future.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_the_handlers_closure_itself_fails_its_run() {
    timed(async {
        let db = Db::new().await;
        let early = |run: Run| {
            assert!(run.attempt() == 0, "too {}", "early");
            async { Ok(Outcome::Yield) }
        };
        let a = Pod::builder(db.config("a")).handler("early", early).start().await.unwrap();
        let run_id = a.start(NewRun::new("early")).await.unwrap().run_id;
        db.client.run_in_state(run_id, "failed", SOON).await;
        assert_eq!(ending(&db.client, run_id).await.2.as_deref(), Some("the handler panicked: too early"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_yielded_run_goes_on_elsewhere_from_its_checkpoint_and_that_is_no_crash() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").capacity(1)).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let mut begun = stage.act().await;
        let b = stage.pod(db.config("b")).await;
        begun.run.checkpoint(json!({"at": 5})).await.unwrap();
        let mut passed = Vec::new();
        // The pod that yields may be the first to take it up again; sooner or later it is not.
        while begun.pod() != "b" {
            passed.push(("a", Some("yielded")));
            begun.give_back();
            begun = stage.act().await;
            assert_eq!(begun.run.saved(), Some(&json!({"at": 5})));
        }
        assert_eq!(begun.run.incarnation(), b.incarnation());
        begun.done(json!(null));
        let end = db.client.run_in_state(run_id, "succeeded", SOON).await;
        assert_eq!(end.crashes, 0);
        passed.push(("b", Some("succeeded")));
        assert_eq!(story(&db.client, run_id).await, told(&passed));
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_run_is_told_at_once_whichever_pod_cancels_it_and_writes_nothing_more() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let b = stage.pod(db.config("b")).await;
        for canceller in [&a, &b] {
            let run_id = a.start(act().key("k")).await.unwrap().run_id;
            let begun = stage.act().await;
            let token = begun.run.token();
            begun.run.checkpoint(json!(1)).await.unwrap();
            let asked = Instant::now();
            assert_eq!(canceller.cancel(run_id).await.unwrap(), Cancelled::Now);
            let next = a.start(NewRun::new("echo").key("k")).await;
            next.expect("another kind's key was never busy");
            let reason = tokio::time::timeout(SOON, begun.run.stopped()).await.expect("told to stop");
            assert!(
                asked.elapsed() < lease() / 4,
                "told after {:?}: by a notification, not by a sweep",
                asked.elapsed()
            );
            assert_eq!((reason, begun.run.stop_reason()), (StopReason::Cancelled, Some(StopReason::Cancelled)));
            assert!(token.is_cancelled());
            let error = begun.run.checkpoint(json!(2)).await.unwrap_err();
            assert!(error.is_fenced() && error.run_id() == Some(run_id), "{error}");
            begun.done(json!("too late"));
            eventually(SOON, "its attempt has ended", || async {
                if a.status().runs == 0 { Ok(()) } else { Err("it runs".into()) }
            })
            .await;
            assert_eq!(ending(&db.client, run_id).await, ("cancelled".into(), None, None));
            let saved: Value =
                db.client.scalar("SELECT checkpoint FROM studio_runs WHERE run_id = $1", &[&run_id.as_uuid()]).await;
            assert_eq!(saved, json!(1));
            assert_eq!(story(&db.client, run_id).await, told(&[("a", Some("cancelled"))]));
            let again = canceller.cancel(run_id).await.unwrap();
            assert_eq!(again, Cancelled::AlreadyEnded { state: "cancelled".into() });
        }
        assert_eq!(b.cancel(RunId::generate()).await.unwrap(), Cancelled::NotFound);
        let done = a.start(NewRun::new("echo")).await.unwrap().run_id;
        db.client.run_in_state(done, "succeeded", SOON).await;
        assert_eq!(b.cancel(done).await.unwrap(), Cancelled::AlreadyEnded { state: "succeeded".into() });
        stage.nothing_more_has_begun().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_of_a_cancelled_run_is_free_at_once_and_an_unowned_run_can_be_cancelled() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let first = a.start(act().key("k")).await.unwrap().run_id;
        let begun = stage.act().await;
        a.cancel(first).await.unwrap();
        let second = a.start(act().key("k")).await.expect("the key is free, though the handler still runs").run_id;
        assert_eq!(stage.act().await.run.id(), second);
        drop(begun);
        let unowned = a.submit(NewRun::new("nobody-has-this")).await.unwrap();
        assert_eq!(a.cancel(unowned).await.unwrap(), Cancelled::Now);
        assert_eq!(db.client.run(unowned).await.state, "cancelled");
        assert_eq!(story(&db.client, unowned).await, []);
    })
    .await;
}

/// What [`Run`]'s page promises: a handler that has not returned lease / 20 after it was told is aborted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_handler_that_does_not_listen_is_aborted() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let run_id = a.start(act()).await.unwrap().run_id;
        let deaf = stage.act().await;
        a.cancel(run_id).await.unwrap();
        eventually(SOON, "the deaf handler is aborted", || async {
            if a.status().runs == 0 { Ok(()) } else { Err(format!("{:?}", deaf.run)) }
        })
        .await;
    })
    .await;
}

/// An end that the database refuses must not make the run begin anew for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_or_error_that_postgres_cannot_store_fails_the_run_once() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a").with(|c| c.sweep_interval = Some(Duration::from_millis(50)))).await;
        for i in 0..2 {
            let run_id = a.start(act()).await.unwrap().run_id;
            let begun = stage.act().await;
            if i == 0 {
                begun.done(json!({"text": "a\0b"}))
            } else {
                begun.fail("a\0b")
            }
            let end = db.client.run_in_state(run_id, "failed", SOON).await;
            assert_eq!(end.attempt, 1);
        }
        stage.nothing_more_has_begun().await;
    })
    .await;
}

/// Put there by hand, or by another program: no pod can begin it, and it must not be claimed for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_input_or_checkpoint_cannot_be_read_ends_as_failed_and_disturbs_no_other() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let mut ids = Vec::new();
        for column in ["input", "checkpoint"] {
            let id = RunId::generate();
            let sql = format!(
                "INSERT INTO studio_runs (run_id, kind, {column}) VALUES ($1, 'act', \
                 (repeat('[', 300) || repeat(']', 300))::jsonb)"
            );
            db.client.execute(&sql, &[&id.as_uuid()]).await.unwrap();
            ids.push(id);
        }
        let sound = a.submit(act()).await.unwrap();
        stage.act().await.done(json!(null));
        db.client.run_in_state(sound, "succeeded", SOON).await;
        for id in ids {
            db.client.run_in_state(id, "failed", SOON).await;
            let sql = "SELECT error FROM studio_runs WHERE run_id = $1";
            let error: String = db.client.scalar(sql, &[&id.as_uuid()]).await;
            assert!(error.starts_with("its input or checkpoint cannot be read: "), "{error}");
        }
        stage.nothing_more_has_begun().await;
    })
    .await;
}
