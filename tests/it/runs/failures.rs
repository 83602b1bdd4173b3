//! A run that fails is told of: by an event, a line of the log, the list of runs, and the end of its stream.

use std::time::{Duration, Instant};

use podlock::operator::{EventFilter, EventRow, RunFilter};
use podlock::{Pod, RunId, StreamEvent};
use serde_json::{Value, json};

use super::stage::{SOON, Stage, act, orphan};
use crate::support::{Db, eventually, timed, trace};

async fn failures(pod: &Pod) -> Vec<EventRow> {
    pod.operator().events(EventFilter::new().kind("run_failed").after(0)).await.unwrap()
}

async fn failures_of(pod: &Pod, count: usize) -> Vec<EventRow> {
    eventually(SOON, &format!("{count} events run_failed"), || async {
        let events = failures(pod).await;
        if events.len() == count { Ok(events) } else { Err(format!("{events:?}")) }
    })
    .await
}

async fn line_of(run_id: RunId) -> trace::Event {
    eventually(SOON, "the failure is logged", || async {
        let events = trace::events(&run_id.to_string());
        let found = events.iter().find(|e| e.get("event").is_some_and(|kind| kind == "run_failed"));
        found.cloned().ok_or_else(|| format!("{events:?}"))
    })
    .await
}

/// A failed run leaves no event, no log line, no error in the list, and a stream's end says its state alone: all four.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_run_leaves_an_event_a_log_line_an_error_in_the_list_and_in_its_streams_end() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let pod = stage.pod(db.config("a")).await;
        let run_id = pod.start(act()).await.unwrap().run_id;
        let begun = stage.act().await;
        let mut reader = pod.attach(run_id).await.unwrap();
        let (fence, long) = (begun.run.fence(), format!("the lorry broke down\n{}", "é".repeat(5000)));
        begun.fail(long.clone());
        let shown = format!("{}…", long.chars().take(1000).collect::<String>());

        let event = failures_of(&pod, 1).await.remove(0);
        assert_eq!((event.pod_id.as_str(), event.by_pod.as_str(), event.incarnation), ("a", "a", pod.incarnation()));
        assert_eq!(event.detail, json!({"kind": "act", "runs": 1, "run": run_id, "error": shown}));
        let line = line_of(run_id).await;
        let expected = [("level", "WARN"), ("pod", "a"), ("kind", "act"), ("attempt", "1"), ("error", &shown)];
        assert!(expected.iter().all(|(field, value)| line[field] == *value), "{line:?}");
        assert_eq!((&line["incarnation"], &line["fence"]), (&pod.incarnation().to_string(), &fence.to_string()));
        let listed = pod.operator().runs(RunFilter::new().state("failed")).await.unwrap();
        assert_eq!((listed.len(), listed[0].error.as_ref()), (1, Some(&shown)));
        let detail = pod.operator().run(run_id).await.unwrap().expect("a run");
        assert_eq!((detail.row.error, detail.output.error), (Some(shown.clone()), Some(long)));
        let end = tokio::time::timeout(SOON, reader.next()).await.expect("it ends").unwrap().expect("an end");
        let StreamEvent::End { state, error, .. } = &end else { panic!("{end:?}") };
        assert_eq!((&**state, error.as_deref()), ("failed", Some(&*shown)));
        assert_eq!(serde_json::to_value(&end).unwrap(), json!({"event": "end", "state": "failed", "error": shown}));
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

/// However it fails: by a panic, an output that says so, an input that nobody can read. And what ends otherwise is told
/// of as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_to_fail_is_told_of_and_no_other_end_is() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let pod = stage.pod(db.config("a")).await;
        let start = async |kind: &str| pod.start(podlock::NewRun::new(kind)).await.unwrap().run_id;
        let panicked = start("panic").await;
        let by_output = start("act").await;
        let output = podlock::Output::text("out").with_exit_code(3).fail_unless_exit_0();
        stage.act().await.end(Ok(podlock::Outcome::Output(output)));
        // Nested too deep for the library to read, as only somebody else can store it.
        // It is of a kind that nobody claims until its input is there.
        let (unreadable, _) = orphan(&db.client, "nobody's").await;
        let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
        let store = "UPDATE studio_runs SET kind = 'act', input = $2::text::jsonb WHERE run_id = $1";
        db.client.execute(store, &[&unreadable.as_uuid(), &deep]).await.unwrap();
        for run_id in [panicked, by_output, unreadable] {
            db.client.run_in_state(run_id, "failed", SOON).await;
        }
        assert_eq!(line_of(panicked).await["error"], "the handler panicked: as asked");
        assert_eq!(line_of(by_output).await["error"], "exit code 3");
        assert!(line_of(unreadable).await["error"].starts_with("its input or checkpoint cannot be read"));

        let good = start("act").await;
        stage.act().await.done(json!(1));
        let cancelled = start("act").await;
        let begun = stage.act().await;
        pod.cancel(cancelled).await.unwrap();
        begun.fail("told to stop");
        for (run_id, state) in [(good, "succeeded"), (cancelled, "cancelled")] {
            db.client.run_in_state(run_id, state, SOON).await;
            let row = pod.operator().run(run_id).await.unwrap().expect("a run").row;
            assert_eq!((row.error, trace_of_failure(run_id)), (None, None), "{state}");
            let mut reader = pod.attach(run_id).await.unwrap();
            let end = serde_json::to_value(reader.next().await.unwrap()).unwrap();
            assert_eq!(end, json!({"event": "end", "state": state}));
        }
        let other = stage.pod(db.config("b")).await;
        pod.shutdown(SOON).await.unwrap();
        let runs: i64 = failures(&other).await.iter().map(|e| e.detail["runs"].as_i64().unwrap()).sum();
        assert_eq!(runs, 3, "each is counted once, and the last ones by the clean stop");
    })
    .await;
}

fn trace_of_failure(run_id: RunId) -> Option<trace::Event> {
    trace::events(&run_id.to_string()).into_iter().find(|e| e.get("event").is_some_and(|kind| kind == "run_failed"))
}

/// Thousands of failing runs must not wait for the log: it is held here, and they end all the same. When it is free,
/// they are a few events that count each run once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_failing_runs_wait_for_no_event_and_are_a_few_events_that_count_each_once() {
    const RUNS: usize = 200;
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let pod = stage.pod(db.config("a").capacity(RUNS)).await;
        let mut holder = crate::support::sql::connect(&db.url).await;
        let held = holder.transaction().await.unwrap();
        let lock = "LOCK TABLE studio_log_order IN EXCLUSIVE MODE";
        held.batch_execute(lock).await.unwrap();
        for n in 0..RUNS {
            pod.start(act()).await.unwrap();
            stage.act().await.fail(format!("failure {n}"));
        }
        let failed = "SELECT count(*) FROM studio_runs WHERE state = 'failed'";
        eventually(SOON, "all have ended", || async {
            let count: i64 = db.client.scalar(failed, &[]).await;
            if count == RUNS as i64 { Ok(()) } else { Err(format!("{count}")) }
        })
        .await;
        assert_eq!(failures(&pod).await, [], "the log is held");
        held.commit().await.unwrap();
        failures_of(&pod, 1).await;
        let began = Instant::now();
        pod.shutdown(SOON).await.unwrap();
        assert!(began.elapsed() < SOON);
        let rows = db.client.query("SELECT detail FROM studio_pod_events WHERE kind = 'run_failed' ORDER BY idx", &[]);
        let details: Vec<Value> = rows.await.unwrap().iter().map(|row| row.get(0)).collect();
        let counted: i64 = details.iter().map(|d| d["runs"].as_i64().unwrap()).sum();
        assert_eq!(counted, RUNS as i64, "{details:?}");
        assert!(details.len() <= 4, "{details:?}");
        // Ends that are written at the same time are told of in any order: the event bears one run with its own error.
        for detail in &details {
            let run_id: RunId = detail["run"].as_str().unwrap().parse().unwrap();
            let error = "SELECT error FROM studio_runs WHERE run_id = $1";
            let error: String = db.client.scalar(error, &[&run_id.as_uuid()]).await;
            assert_eq!((&detail["error"], &detail["kind"]), (&json!(error), &json!("act")), "{details:?}");
        }
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

/// What was surely not written is told later: the function is missing for a while, as a right could be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_that_the_log_refuses_is_told_of_when_it_takes_it_again() {
    timed(async {
        let (db, stage) = (Db::new().await, Stage::new());
        let pod = stage.pod(db.config("refused-by-the-log")).await;
        let rename = |from: &str, to: &str| format!("ALTER FUNCTION {from} RENAME TO {to}");
        db.client.batch_execute(&rename("studio_note_failures", "put_away")).await.unwrap();
        let run_id = pod.start(act()).await.unwrap().run_id;
        stage.act().await.fail("broken");
        eventually(SOON, "it was refused", || async {
            let events = trace::events(pod.pod_id().as_str());
            let found = events.iter().any(|e| e.get("event").is_some_and(|kind| kind == "failures_untold"));
            if found { Ok(()) } else { Err(format!("{events:?}")) }
        })
        .await;
        db.client.batch_execute(&rename("put_away", "studio_note_failures")).await.unwrap();
        let event = eventually(SOON + Duration::from_secs(10), "the event", || async {
            failures(&pod).await.pop().ok_or_else(|| "none".to_owned())
        })
        .await;
        assert_eq!(event.detail, json!({"kind": "act", "runs": 1, "run": run_id, "error": "broken"}));
    })
    .await;
}
