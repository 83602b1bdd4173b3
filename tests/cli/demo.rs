//! The demo from its first word to its last, and that it leaves nothing behind, however it ends.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::harness::{Db, Done, Lines, finish, marked_processes, podlock, signal, wait_for, within};

const DEMO: Duration = crate::patience::TEST;

/// A directory for everything that a demo makes, whose name all its processes bear.
fn temporary() -> TempDir {
    let directory = TempDir::with_prefix("pd-").unwrap();
    // PostgreSQL refuses to run as root; the account that it runs as must be able to enter.
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

fn demo(directory: &TempDir, args: &[&str]) -> Command {
    let mut command = podlock(&[&["demo"], args].concat());
    command.env("TMPDIR", directory.path());
    command
}

async fn nothing_is_left(directory: &TempDir) {
    let mark = directory.path().to_string_lossy().into_owned();
    wait_for("no process and no directory is left", || async {
        let processes = marked_processes(&mark);
        let files: Vec<_> = std::fs::read_dir(directory.path()).unwrap().flatten().map(|f| f.path()).collect();
        if processes.is_empty() && files.is_empty() { Ok(()) } else { Err(format!("{processes:#?} {files:?}")) }
    })
    .await;
}

async fn end_to_end(args: &[&str]) -> (Done, Value) {
    let directory = temporary();
    let done = finish(demo(&directory, &[args, &["-o", "json"]].concat())).await;
    assert_eq!(done.code, 0, "{}\n{}", done.stderr, done.stdout);
    let report: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(report["ok"], true, "{report}");
    nothing_is_left(&directory).await;
    (done, report)
}

#[test]
fn a_killed_pods_runs_each_finish_once() {
    within(DEMO, async {
        let (done, report) = end_to_end(&["--kill", "kill"]).await;
        assert_eq!(report["reason"], "lost", "{report}");
        assert!(report["moved"].as_array().is_some_and(|moved| moved.len() >= 4), "{report}");
        // A few milliseconds, where the machine has nothing else to do; the bound holds even if no push arrives.
        let bound = podlock::Config::new("").lease(Duration::from_secs(3)).worst_case().unwrap().process_killed;
        let bound = bound.as_secs_f64() * 1000.0;
        assert!(report["noticed_ms"].as_f64().is_some_and(|ms| ms < bound), "{report}");
        assert!(report["executing_ms"]["most"].as_f64().is_some_and(|ms| ms < bound + 1000.0), "{report}");
        for sentence in ["SIGKILL", "noticed", "may bury", "Every run finished once: 12 of 12"] {
            assert!(done.stderr.contains(sentence), "no {sentence:?} in {}", done.stderr);
        }
        assert!(!done.stderr.contains('\u{1b}'), "no terminal, no escape codes: {}", done.stderr);
    });
}

#[test]
fn a_pod_that_is_asked_to_stop_hands_its_runs_over() {
    within(DEMO, async {
        let (_, report) = end_to_end(&["--kill", "term", "--pods", "2", "--runs", "6"]).await;
        assert_eq!(report["reason"], "shutdown", "{report}");
        assert!(report["draining_ms"].is_f64() && report["process_ended_ms"].is_f64(), "{report}");
    });
}

#[test]
fn a_frozen_pod_is_buried_by_its_lease_and_comes_back_as_another() {
    within(DEMO, async {
        let (done, report) = end_to_end(&["--kill", "stop", "--lease", "2s", "--chunks", "60"]).await;
        assert_eq!(report["reason"], "lost", "{report}");
        assert!(report["noticed_ms"].as_f64().is_some_and(|ms| ms > 1000.0), "only the lease can tell: {report}");
        assert!(report["back_ms"].is_f64(), "{report}");
        assert!(done.stderr.contains("new incarnation"), "{}", done.stderr);
    });
}

#[test]
fn a_given_database_is_left_as_it_was() {
    within(DEMO, async {
        let db = Db::new().await;
        let directory = temporary();
        let mut command = demo(&directory, &["--runs", "3", "--chunks", "20", "-o", "json"]);
        command.env("DATABASE_URL", &db.url);
        let done = finish(command).await;
        assert_eq!(done.code, 0, "{done:?}");
        nothing_is_left(&directory).await;
        let left = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'podlock%'
                     UNION ALL SELECT relname FROM pg_class WHERE relname LIKE 'studio%'";
        let left = db.client().await.query(left, &[]).await.unwrap();
        assert!(left.is_empty(), "{:?}", left.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>());
    });
}

#[test]
fn a_demo_that_is_broken_off_leaves_nothing() {
    within(DEMO, async {
        // At which sentence it is broken off, and how.
        let cases = [
            ("Starting a PostgreSQL", Signal::INT),
            ("Starting 3 pods", Signal::TERM),
            ("may bury", Signal::INT),
            ("Sending it SIGKILL", Signal::INT),
            ("may bury", Signal::KILL),
        ];
        for (sentence, how) in cases {
            let directory = temporary();
            let mut child = demo(&directory, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let said = Lines::read(child.stdout.take().unwrap());
            let errors = Lines::read(child.stderr.take().unwrap());
            said.find(&format!("it says {sentence:?}"), |line| line.contains(sentence).then_some(())).await;
            signal(child.id().unwrap(), how);
            let status = child.wait().await.unwrap();
            if how != Signal::KILL {
                assert_eq!(status.code(), Some(1), "{sentence}: {:?}", errors.all());
                errors.find("it says why it ended", |line| line.contains("broken off").then_some(())).await;
            }
            nothing_is_left(&directory).await;
        }
    });
}

#[test]
fn a_frozen_pod_does_not_outlive_a_demo_that_is_killed() {
    within(DEMO, async {
        let directory = temporary();
        let mut command = demo(&directory, &["--kill", "stop", "--lease", "30s"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let said = Lines::read(child.stdout.take().unwrap());
        let began = std::time::Instant::now();
        while !said.all().iter().any(|line| line.contains("SIGSTOP")) {
            assert!(began.elapsed() < DEMO / 2, "{:#?}", said.all());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        signal(child.id().unwrap(), Signal::KILL);
        child.wait().await.unwrap();
        nothing_is_left(&directory).await;
    });
}
