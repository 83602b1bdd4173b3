//! The trace of a run: kept in its row, the same in each attempt on whichever pod, and in the span around the handler.

use std::sync::{Arc, Mutex};

use podlock::{ErrorKind, HandlerError, NewRun, Outcome, Pod, Run, RunId};

use super::stage::{SOON, Stage, act};
use crate::support::{Db, eventually, sql, start_of, timed, with_kinds};

const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

/// What the hook got: the traceparent, and the id of the span.
type Hooked = (String, Option<tracing::Id>);

async fn row(db: &Db, run_id: RunId) -> Option<String> {
    db.client.scalar("SELECT traceparent FROM studio_runs WHERE run_id = $1", &[&run_id.as_uuid()]).await
}

/// "each run, attempt and takeover under one trace that is kept across pods (`traceparent` in the run's row)".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_to_start_a_run_keeps_its_trace_over_a_yield_and_a_kill() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let mut client = sql::connect(&db.url).await;
        let given = || act().traceparent(GIVEN);
        let started = a.start(given()).await.unwrap().run_id;
        let submitted = a.submit(given()).await.unwrap();
        let txn = client.transaction().await.unwrap();
        let (owned, unowned) =
            (a.start_in_txn(&txn, given()).await.unwrap(), a.submit_in_txn(&txn, given()).await.unwrap());
        txn.commit().await.unwrap();
        let made = a.start(act()).await.unwrap().run_id;
        for act in stage.acts(5).await {
            let expected = row(&db, act.run.id()).await;
            assert_eq!(act.run.traceparent(), expected.as_deref());
            if act.run.id() == made {
                let made = expected.unwrap();
                assert!(made.len() == 55 && made.starts_with("00-") && made.ends_with("-01"), "{made}");
            } else {
                assert!([started, submitted, owned, unowned].contains(&act.run.id()));
                assert_eq!(expected.as_deref(), Some(GIVEN));
            }
            let detail = a.operator().run(act.run.id()).await.unwrap().unwrap();
            assert_eq!(detail.traceparent.as_deref(), act.run.traceparent());
            act.give_back();
        }
        // After a yield, and then after a death, the next attempt has the same.
        for _ in 0..5 {
            let act = stage.act().await;
            assert_eq!((act.run.attempt(), act.run.traceparent()), (2, row(&db, act.run.id()).await.as_deref()));
        }
        drop(a);
        let _b = stage.pod(db.config("a")).await;
        for act in stage.acts(5).await {
            assert_eq!((act.run.attempt(), act.run.traceparent()), (3, row(&db, act.run.id()).await.as_deref()));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_is_no_traceparent_is_refused_before_anything_is_started() {
    timed(async {
        let db = Db::new().await;
        let a = db.pod("a").await;
        for text in ["", "x", "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", &GIVEN.to_uppercase(), "00-\0"]
        {
            let new = || NewRun::new("echo").traceparent(text);
            let refused = [a.start(new()).await.map(drop), a.submit(new()).await.map(drop)];
            for error in refused.map(|refused| refused.expect_err("it is no traceparent")) {
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                let text = error.to_string();
                assert!(text.contains("its traceparent must") && text.contains("no run was started"), "{text}");
            }
        }
        assert_eq!(db.client.scalar::<i64>("SELECT count(*) FROM studio_runs", &[]).await, 0);
    })
    .await;
}

/// A restarted run is another run. A run of an older version has no trace, and runs all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_run_begins_a_trace_and_a_row_without_one_is_no_fault() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let a = stage.pod(db.config("a")).await;
        let first = a.start(act().traceparent(GIVEN)).await.unwrap().run_id;
        stage.act().await.done(1);
        db.client.run_in_state(first, "succeeded", SOON).await;
        let run_id = a.operator().restart(first).await.unwrap();
        let again = stage.act_of(run_id).await;
        let trace = again.run.traceparent().map(ToOwned::to_owned).unwrap();
        assert!(trace != GIVEN && Some(&trace) == row(&db, run_id).await.as_ref(), "{trace}");
        again.done(1);

        let old = RunId::generate();
        let insert = "INSERT INTO studio_runs (run_id, kind) VALUES ($1, 'act')";
        db.client.execute(insert, &[&old.as_uuid()]).await.unwrap();
        assert_eq!(stage.act_of(old).await.run.traceparent(), None);
    })
    .await;
}

/// "Spans: each run, attempt and takeover": the handler runs in the span, and the service may give it a parent before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_handler_runs_in_the_span_of_its_attempt_and_a_hook_that_panics_ends_nothing() {
    timed(async {
        let db = Db::new().await;
        let hooked: Arc<Mutex<Vec<Hooked>>> = Arc::default();
        let pod = start_of(|| {
            let hooked = Arc::clone(&hooked);
            with_kinds(Pod::builder(db.config("hooked")))
                .handler("spanned", |_: Run| async move {
                    tokio::task::yield_now().await;
                    let span = tracing::Span::current();
                    let name = span.metadata().map(tracing::Metadata::name);
                    let id = span.id().ok_or("there is no span")?;
                    Ok::<_, HandlerError>(Outcome::Done(serde_json::json!([name, id.into_u64()])))
                })
                .on_attempt(move |traceparent, span| {
                    hooked.lock().unwrap().push((traceparent.to_owned(), span.id()));
                    assert!(!traceparent.ends_with("-00"), "as asked");
                })
        })
        .await;
        for new in [NewRun::new("spanned"), NewRun::new("spanned").traceparent(GIVEN)] {
            let run = pod.start(new).await.unwrap().run_id;
            let result = eventually(SOON, "it succeeds", || async {
                let detail = pod.operator().run(run).await.unwrap().unwrap();
                detail.output.result.ok_or(detail.row.state)
            })
            .await;
            let (traceparent, id) = hooked.lock().unwrap().pop().expect("the hook was called");
            assert_eq!(Some(traceparent), row(&db, run).await);
            assert_eq!(result, serde_json::json!(["podlock::run", id.unwrap().into_u64()]));
        }
    })
    .await;
}
