//! `examples/worker.rs`, run as its head says.

use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Db, Lines, SOON, TEST, clean, example, signal, wait_for, within};

const FILES: usize = 4000;

#[test]
fn the_example_hands_its_run_over_at_sigterm_and_the_next_one_completes_it() {
    let program = within(10 * TEST, example("worker"));
    within(TEST, async {
        let db = Db::new().await;
        let directory = tempfile::tempdir().unwrap();
        for n in 0..FILES {
            std::fs::write(directory.path().join(format!("{n:05}")), "12345").unwrap();
        }
        let start = |name: &str, args: &[&Path]| {
            let mut command = clean(&program);
            command.args(args).env("DATABASE_URL", &db.url).env("POD_NAME", name);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let log = Lines::read(child.stderr.take().unwrap());
            (child, log)
        };
        let (mut first, log) = start("first", &[directory.path()]);
        log.find("the run is started", |line| line.contains("started run=").then_some(())).await;
        let client = db.client().await;
        let run = || async {
            let sql = "SELECT state, owner_incarnation IS NULL, checkpoint, result FROM studio_runs";
            let row = client.query_one(sql, &[]).await.unwrap();
            let (state, given_back): (String, bool) = (row.get(0), row.get(1));
            (state, given_back, row.get::<_, Option<Value>>(2), row.get::<_, Option<Value>>(3))
        };
        wait_for("a checkpoint is saved", || async {
            let run = run().await;
            if run.2.is_some() { Ok(()) } else { Err(format!("{run:?}")) }
        })
        .await;
        signal(first.id().unwrap(), Signal::TERM);
        let status = tokio::time::timeout(SOON, first.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("it has not ended: {:#?}", log.all())).unwrap();
        assert!(status.success(), "{status}: {:#?}", log.all());
        let (state, given_back, checkpoint, _) = run().await;
        assert!((state == "running" && given_back) || state == "succeeded", "{state}, {given_back}, {checkpoint:?}");

        let (mut second, log) = start("second", &[]);
        let result = wait_for("the run has ended", || async {
            let run = run().await;
            if run.0 == "succeeded" { Ok(run.3) } else { Err(format!("{run:?}: {:#?}", log.all())) }
        })
        .await;
        assert_eq!(result, Some(json!({ "files": FILES, "bytes": 5 * FILES })));
        db.ok(&["drain", "second"]).await;
        let status = tokio::time::timeout(SOON, second.wait()).await;
        assert!(status.unwrap_or_else(|_| panic!("it has not ended: {:#?}", log.all())).unwrap().success());
    });
}
