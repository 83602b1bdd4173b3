//! `examples/traces.rs`, run as its head says: a run is one trace on whichever pod.

use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Db, Lines, SOON, TEST, clean, example, signal, within};

/// "each run, attempt and takeover under one trace that is kept across pods".
#[test]
fn both_pods_export_the_attempts_of_a_run_under_one_trace_id() {
    let program = within(10 * TEST, example("traces"));
    within(TEST, async {
        let db = Db::new().await;
        let start = |name: &str, args: &[&str]| {
            let mut command = clean(&program);
            command.args(args).env("DATABASE_URL", &db.url).env("POD_NAME", name).env("PODLOCK_LEASE", "3s");
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let spans = Lines::read(child.stdout.take().unwrap());
            let log = Lines::read(child.stderr.take().unwrap());
            (child, spans, log)
        };
        let (mut first, spans, _log) = start("first", &["30"]);
        let span = |name: &'static str| {
            move |line: &str| serde_json::from_str::<Value>(line).ok().filter(|span| span["name"] == name)
        };
        // The span of the attempt ends with the attempt, so a killed one is not exported. Its steps are.
        let step = spans.find("the first pod has made a step", span("step")).await;
        let (mut second, spans, log) = start("second", &[]);
        signal(first.id().unwrap(), Signal::KILL);
        first.wait().await.unwrap();
        let next = spans.find("the second pod has made a step", span("step")).await;
        assert_eq!(next["trace_id"], step["trace_id"]);
        assert_ne!(next["parent_id"], step["parent_id"], "each attempt has a span of its own");

        let attempt = spans.find("the run has ended", span("podlock::run")).await;
        let row = db.client().await.query_one("SELECT run_id::text, traceparent, attempt FROM studio_runs", &[]).await;
        let row = row.unwrap();
        let (run_id, traceparent, number): (String, String, i32) = (row.get(0), row.get(1), row.get(2));
        let [_, trace_id, parent_id, _] = traceparent.split('-').collect::<Vec<_>>()[..] else {
            panic!("{traceparent}")
        };
        assert_eq!((&attempt["trace_id"], &attempt["parent_id"]), (&trace_id.into(), &parent_id.into()), "{attempt}");
        assert_eq!((&step["trace_id"], &next["parent_id"]), (&trace_id.into(), &attempt["span_id"]), "{next}");
        let of = |name: &str| attempt["attributes"][name].as_str().unwrap_or_default().to_owned();
        assert_eq!((of("run_id"), of("kind"), of("attempt")), (run_id.clone(), "steps".into(), number.to_string()));
        assert_eq!((of("traceparent"), of("taken_over")), (traceparent.clone(), "lost".into()), "{attempt}");
        let described = db.json(&["runs", "describe", &run_id]).await;
        assert_eq!(described["traceparent"], traceparent);

        signal(second.id().unwrap(), Signal::TERM);
        let status = tokio::time::timeout(SOON, second.wait()).await;
        assert!(status.unwrap_or_else(|_| panic!("it has not ended: {:#?}", log.all())).unwrap().success());
    });
}
