//! "Every duration, count and size from outside has an upper bound or saturates": each verb with the most extreme
//! values ends well, or with a sentence, and never with a panic.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Db, SOON, TEST, signal, within};

const DURATIONS: [&str; 7] =
    ["0s", "1ns", "18446744073709551615s", "9223372036854775807s", "584554530872y", "-1s", "99999999999999999999s"];
const COUNTS: [&str; 7] =
    ["0", "1", "-1", "4294967295", "9223372036854775807", "-9223372036854775808", "99999999999999999999999999"];

/// Runs the command to its end, and ends it as an orchestrator does if it goes on. Fails at a panic, or a failure that
/// says nothing.
async fn ends_well(db: &Db, variables: &[(&str, &str)], args: &[&str]) {
    let mut command = db.command(args);
    command.envs(variables.iter().copied()).env("PODLOCK_LOG", "warn");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id().unwrap();
    let output = child.wait_with_output();
    tokio::pin!(output);
    let (output, by_itself) = match tokio::time::timeout(Duration::from_secs(2), &mut output).await {
        Ok(output) => (output.unwrap(), true),
        Err(_) => {
            // It took the value, and works.
            signal(pid, Signal::TERM);
            let output = tokio::time::timeout(SOON, &mut output).await;
            let output = output.unwrap_or_else(|_| panic!("podlock {args:?} {variables:?} does not end at SIGTERM"));
            (output.unwrap(), false)
        }
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let seen = format!("podlock {args:?} {variables:?}: {}: {said}", output.status);
    assert!(!said.contains("panicked") && output.status.code() != Some(101), "{seen}");
    // One that a signal ended, or that a signal ended its command, need not say so.
    if by_itself && output.status.code().is_some_and(|code| code != 0) {
        assert!(said.starts_with("error: ") || said.contains("podlock: "), "it failed without a word: {seen}");
    }
}

#[test]
fn no_duration_on_the_command_line_is_so_extreme_that_it_panics() {
    within(8 * TEST, async {
        let db = Db::migrated().await;
        for value in DURATIONS {
            let flag = |name: &str| format!("{name}={value}");
            for (verb, name, rest) in [
                (&["pods", "watch"][..], "--every", &[][..]),
                (&["prune", "--dry-run"], "--runs-older-than", &[]),
                (&["prune"], "--failed-older-than", &[]),
                (&["prune"], "--events-older-than", &[]),
                (&["probe", "http://127.0.0.1:9/"], "--timeout", &[]),
                (&["drain", "nobody"], "--wait", &[]),
                (&["pod", "--name", "p"], "--grace", &[]),
                (&["pod", "--name", "p"], "--lease", &[]),
                (&["hold", "--name", "h"], "--wait", &["--", "true"]),
                (&["hold", "--name", "h"], "--grace", &["--", "true"]),
                (&["hold", "--name", "h"], "--lease", &["--", "true"]),
                (&["demo"], "--lease", &[]),
            ] {
                if verb == ["demo"] && value == "0s" {
                    // Refused for another reason; the demo itself is tested elsewhere.
                    continue;
                }
                let flag = flag(name);
                ends_well(&db, &[], &[verb, &[flag.as_str()], rest].concat()).await;
            }
        }
        ends_well(&db, &[], &["demo", "--delay=18446744073709551615s"]).await;
    });
}

#[test]
fn no_count_on_the_command_line_is_so_extreme_that_it_panics() {
    within(4 * TEST, async {
        let db = Db::migrated().await;
        for value in COUNTS {
            for (verb, name) in [
                (&["pods", "list"][..], "--limit"),
                (&["runs", "list"], "--limit"),
                (&["events"], "--limit"),
                (&["events"], "--after"),
                (&["migrate", "sql"], "--from"),
                (&["pod", "--name", "p"], "--capacity"),
                (&["pod", "--name", "p"], "--max-crashes"),
            ] {
                let flag = format!("{name}={value}");
                ends_well(&db, &[], &[verb, &[flag.as_str()]].concat()).await;
            }
            let of_kind = format!("--capacity-of=demo={value}");
            ends_well(&db, &[], &["pod", "--name", "p", &of_kind]).await;
        }
    });
}

/// A drain waits for a pod that is there, for as long as one may say.
#[test]
fn a_drain_may_wait_for_as_long_as_there_is() {
    within(TEST, async {
        let db = Db::new().await;
        let mut pod = db.pod("web-0", &["--grace", "18446744073709551615s"]).await;
        let drained = db.json(&["drain", "web-0", "--wait", "18446744073709551615s"]).await;
        assert_eq!(drained["gone"], true, "{drained}");
        assert_eq!(pod.ended().await, Some(0));
    });
}

#[test]
fn no_setting_of_the_environment_is_so_extreme_that_it_panics() {
    within(6 * TEST, async {
        let db = Db::migrated().await;
        let times = [
            "LEASE",
            "PING_INTERVAL",
            "PING_TIMEOUT",
            "SELF_FENCE",
            "SETTLE",
            "RECONNECT_GRACE",
            "RECONNECT_BACKOFF_MAX",
            "HOLD_PROBE_INTERVAL",
            "SWEEP_INTERVAL",
            "WATCH_SLICE",
            "BEAT_INTERVAL",
            "STALL_AFTER",
            "ACQUIRE_TIMEOUT",
            "CONNECT_TIMEOUT",
            "STATEMENT_TIMEOUT",
            "CLAIM_DELAY",
            "KEEP_RUNS",
            "KEEP_FAILED_RUNS",
            "KEEP_EVENTS",
            "PRUNE_INTERVAL",
        ];
        for name in times.map(|name| format!("PODLOCK_{name}")) {
            for value in ["0s", "18446744073709551615s"] {
                ends_well(&db, &[(&name, value)], &["hold", "--name", "h", "--", "true"]).await;
            }
        }
        for name in ["STALL_CYCLES", "CAPACITY", "MAX_CRASHES", "POOL_SIZE", "RESULT_MAX_BYTES", "STDERR_MAX_BYTES"] {
            for value in ["0", "4294967295", "18446744073709551615"] {
                ends_well(&db, &[(&format!("PODLOCK_{name}"), value)], &["hold", "--name", "h", "--", "true"]).await;
            }
        }
        // Times that hold: what is the longest of each works, it is not only accepted.
        for (name, value) in [("ACQUIRE_TIMEOUT", "24days"), ("CLAIM_DELAY", "24days"), ("STATEMENT_TIMEOUT", "24days")]
        {
            let done = {
                let mut command = db.command(&["hold", "--name", "h", "--", "true"]);
                command.env(format!("PODLOCK_{name}"), value);
                crate::harness::finish(command).await
            };
            assert_eq!(done.code, 0, "{name}={value}: {done:?}");
        }
        for word in
            ["connect_timeout", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"]
        {
            let apart = if db.url.contains('?') { '&' } else { '?' };
            for value in ["0", "4294967295", "18446744073709551615", "-1"] {
                let url = format!("{}{apart}{word}={value}", db.url);
                ends_well(&db, &[("DATABASE_URL", &url)], &["pods", "list"]).await;
            }
        }
    });
}

#[test]
fn no_number_of_a_request_is_so_extreme_that_it_panics() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = db.pod("web-0", &[]).await;
        let run = pod.demo(json!({ "chunks": 1, "delay_ms": 0 })).await;
        let most = "2147483647.2147483647.9223372036854775807.9223372036854775807";
        for id in
            [most, "1.0.9223372036854775807.0", "1.0.0.9223372036854775807", "99999999999999999999.0.0.0", "-1.0.0.0"]
        {
            let request = pod.http.get(format!("{}/v1/runs/{run}/stream", pod.url)).header("Last-Event-ID", id);
            let response = request.send().await.unwrap();
            assert!([200, 204, 400, 422].contains(&response.status().as_u16()), "{id}: {response:?}");
            tokio::time::timeout(SOON, response.text()).await.expect("the stream ends").unwrap();
        }
        for input in [
            json!({ "chunks": u64::MAX, "delay_ms": 0 }),
            json!({ "chunks": 1, "delay_ms": u64::MAX }),
            json!({ "chunks": -1, "delay_ms": 1e300 }),
        ] {
            let (status, body) = pod.post(json!({ "kind": "demo", "input": input })).await;
            assert_eq!((status, &body["kind"]), (422, &json!("invalid_input")), "{body}");
        }
        assert!(!pod.log.all().iter().any(|line| line.contains("panicked")), "{:#?}", pod.log.all());
    });
}
