//! The reference pod as a process.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Db, PodProcess, TEST, clean, finish, podlock, signal, wait_for, within};
use crate::patience::slack;

#[test]
fn pod_name_is_required_in_production() {
    within(TEST, async {
        let db = Db::migrated().await;
        for name in [None, Some("")] {
            let mut command = db.command(&["pod"]);
            command.env("PODLOCK_ENV", "production");
            if let Some(name) = name {
                command.env("POD_NAME", name);
            }
            let done = finish(command).await;
            assert_eq!(done.code, 1, "{done:?}");
            assert!(done.stderr.contains("POD_NAME") && done.stderr.contains("downward API"), "{done:?}");
        }
        assert_eq!(db.json(&["pods", "list"]).await, json!([]));

        let mut command = db.command(&["pod", "--name", "given"]);
        command.env("PODLOCK_ENV", "production").env("POD_NAME", "not-this");
        let pod = PodProcess::start(command).await;
        assert!(pod.ready.starts_with("podlock pod given listening on http://127.0.0.1:"), "{}", pod.ready);
    });
}

#[test]
fn a_hostile_name_is_just_a_name() {
    within(TEST, async {
        let db = Db::migrated().await;
        let names = ["o'brien\"; DROP TABLE studio_pods; --", "名前 🦀", "$$; $1 \\", " ", "@.studio_pods"];
        let mut pods = Vec::new();
        for name in names {
            pods.push(db.pod(name, &[]).await);
        }
        let listed = db.json(&["pods", "list"]).await;
        let mut listed: Vec<_> = listed.as_array().unwrap().iter().map(|pod| pod["pod_id"].as_str().unwrap()).collect();
        let mut due = names.to_vec();
        listed.sort_unstable();
        due.sort_unstable();
        assert_eq!(listed, due);
        for (name, pod) in names.iter().zip(&mut pods) {
            let run = pod.demo(json!({"chunks": 1, "delay_ms": 1})).await;
            assert_eq!(db.json(&["runs", "describe", &run]).await["attempts"][0]["pod_id"], *name);
            db.ok(&["drain", name]).await;
            assert_eq!(pod.ended().await, Some(0), "{name:?}");
        }
    });
}

/// Each `[env: NAME]` and `[default: value]` of a flag that stands for a setting.
#[test]
fn the_help_gives_each_setting_the_variable_and_default_of_the_page_on_settings() {
    within(TEST, async {
        let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md")).unwrap();
        let done = finish(podlock(&["pod", "--help"])).await;
        let help = done.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        let of_flag = |flag: &str| {
            let begin = help.find(&format!(" {flag} <")).unwrap_or_else(|| panic!("{flag} is not in {help}"));
            let text = &help[begin + 1..];
            text[..text.find(" --").unwrap_or(text.len())].to_owned()
        };
        for (flag, setting, shows_default) in [
            ("--name", "pod_name", false),
            ("--lease", "lease", true),
            ("--capacity", "capacity", true),
            ("--capacity-of", "capacity_of", false),
            ("--max-crashes", "max_crashes", true),
            ("--schema", "schema", true),
        ] {
            let section = page.split("\n### ").find(|section| section.lines().next() == Some(setting)).expect(setting);
            let word =
                |begin: &str| section.split_once(begin).and_then(|(_, rest)| rest.split(['.', '`']).next()).unwrap();
            let of_flag = of_flag(flag);
            assert!(of_flag.contains(&format!("[env: {}", word("Environment: `"))), "{flag}: {of_flag}");
            let default = format!("[default: {}]", word("Default: ").replace(' ', ""));
            assert!(!shows_default || of_flag.contains(&default), "{flag} has no {default}: {of_flag}");
        }
    });
}

#[test]
fn bad_usage_exits_2_and_a_refused_start_1() {
    within(TEST, async {
        let db = Db::migrated().await;
        let long = "x".repeat(129);
        let usage: &[&[&str]] = &[
            &["--name", ""],
            &["--name", "a\nb"],
            &["--name", &long],
            &["--listen", "nonsense"],
            &["--listen", "127.0.0.1:99999"],
            &["--grace", "soon"],
            &["--lease", "1s"],
            &["--lease", "never"],
            &["--capacity", "0"],
            &["--capacity-of", "demo"],
            &["--capacity-of", "demo=0"],
            &["--max-crashes", "many"],
            &["--label", "novalue"],
            &["--log-format", "xml"],
            &["--nonsense"],
        ];
        for args in usage {
            let done = db.run(&[&["pod"], *args].concat()).await;
            assert_eq!(done.code, 2, "podlock pod {args:?}: {done:?}");
            assert!(!done.stderr.is_empty() && done.stdout.is_empty(), "podlock pod {args:?}: {done:?}");
        }
        let mut command = db.command(&["pod"]);
        command.env("PODLOCK_LOG", "podlock=loudly");
        assert_eq!(finish(command).await.code, 2);

        let holder = db.pod("taken", &[]).await;
        let address = holder.url.trim_start_matches("http://").to_owned();
        let done = db.run(&["pod", "--name", "other", "--listen", &address]).await;
        assert_eq!(done.code, 1, "the address is taken: {done:?}");
        assert!(done.stderr.contains(&address), "{done:?}");
        let mut command = db.command(&["pod", "--name", "taken", "--lease", "2s"]);
        command.env("PODLOCK_ACQUIRE_TIMEOUT", "300ms");
        let done = finish(command).await;
        assert_eq!(done.code, 1, "the name is taken: {done:?}");
        let holder_pid = db.json(&["pods", "list"]).await[0]["holder_pid"].to_string();
        assert!(done.stderr.contains(&holder_pid), "it names the holder's pid {holder_pid}: {done:?}");
        for (name, value) in [("PODLOCK_LEASE", "soon"), ("PODLOCK_CAPACITY", "many"), ("PODLOCK_SELF_FENCE", "1h")] {
            let mut command = db.command(&["pod", "--name", "x"]);
            command.env(name, value);
            let done = finish(command).await;
            assert_eq!(done.code, 1, "{name}={value}: {done:?}");
        }
        let done = finish(podlock(&["pod", "--name", "x"])).await;
        assert_eq!(done.code, 2, "no database is named: {done:?}");
    });
}

#[test]
fn sigterm_hands_runs_over_and_exits_0_while_http_answers() {
    within(TEST, async {
        let db = Db::new().await;
        let mut pod = db.pod("leaving", &["--grace", "20s", "--lease", "30s"]).await;
        let run = pod.demo(json!({"chunks": 100_000, "delay_ms": 10, "resume": "continue"})).await;
        wait_for("the run has made some chunks", || async {
            let run = pod.get(&format!("/v1/runs/{run}")).await.1;
            if run["checkpoint"]["done"].as_i64() > Some(3) { Ok(()) } else { Err(run.to_string()) }
        })
        .await;
        // Holds up the drain's first statement, so that there is time to ask.
        let mut blocker = db.client().await;
        let txn = blocker.transaction().await.unwrap();
        txn.batch_execute("LOCK TABLE studio_pods IN SHARE MODE").await.unwrap();
        pod.signal(Signal::TERM);
        pod.log.event("stopping").await;
        let (status, body) = wait_for("it is not ready any more", || async {
            let answer = pod.get("/readyz").await;
            if answer.0 == 503 { Ok(answer) } else { Err(format!("{answer:?}")) }
        })
        .await;
        assert_eq!((status, &body["kind"]), (503, &json!("draining")), "{body}");
        assert_eq!(pod.get("/livez").await.0, 200);
        let (status, body) = pod.post(json!({"kind": "demo"})).await;
        assert_eq!((status, &body["kind"]), (503, &json!("draining")), "{body}");
        assert_eq!(pod.get(&format!("/v1/runs/{run}")).await.0, 200);
        txn.rollback().await.unwrap();
        assert_eq!(pod.ended().await, Some(0), "{:#?}", pod.log.all());

        let given_back = db.json(&["runs", "describe", &run]).await;
        assert_eq!(given_back["attempts"][0]["reason"], "yielded", "{given_back}");
        assert_eq!(given_back["crashes"], 0);
        let done = given_back["checkpoint"]["done"].as_i64().unwrap();

        let next = db.pod("next", &[]).await;
        let went_on = next.log.event("executing").await;
        assert_eq!((&went_on["run_id"], &went_on["attempt"]), (&json!(run), &json!(2)));
        assert_eq!(went_on["from"], done + 1, "it goes on from the checkpoint");
        wait_for("it is on record as one that stopped cleanly", || async {
            let left = db.json(&["pods", "describe", "leaving"]).await;
            if left["sessions"][0]["reason"] == "shutdown" { Ok(()) } else { Err(left.to_string()) }
        })
        .await;
    });
}

/// The conventions of `nohup` and of a shell's `&`. A signal that it heard would end it with 1, as the second one does.
#[test]
fn a_pod_that_was_started_to_ignore_sigint_and_sighup_ignores_them() {
    within(TEST, async {
        let db = Db::migrated().await;
        let mut shell = clean(Path::new("sh"));
        let pod = "trap '' HUP INT; exec \"$0\" pod --name w --lease 30s --log-format json";
        shell.args(["-c", pod, env!("CARGO_BIN_EXE_podlock")]).env("DATABASE_URL", &db.url);
        let mut pod = PodProcess::start(shell).await;
        pod.signal(Signal::INT);
        pod.signal(Signal::HUP);
        pod.signal(Signal::TERM);
        let stopping = pod.log.event("stopping").await;
        assert!(stopping.to_string().contains("SIGTERM"), "{stopping}");
        assert_eq!(pod.ended().await, Some(0));
    });
}

#[test]
fn restart_begins_anew() {
    within(TEST, async {
        let db = Db::new().await;
        let mut pod = db.pod("first", &[]).await;
        let run = pod.demo(json!({"chunks": 60, "delay_ms": 20, "resume": "restart"})).await;
        wait_for("the run has made some chunks", || async {
            let run = pod.get(&format!("/v1/runs/{run}")).await.1;
            if run["checkpoint"]["done"].as_i64() > Some(3) { Ok(()) } else { Err(run.to_string()) }
        })
        .await;
        pod.signal(Signal::TERM);
        assert_eq!(pod.ended().await, Some(0));
        let next = db.pod("next", &[]).await;
        assert_eq!(next.log.event("executing").await["from"], 1);
        let run = wait_for("the run has succeeded", || async {
            let run = next.get(&format!("/v1/runs/{run}")).await.1;
            if run["state"] == "succeeded" { Ok(run) } else { Err(run.to_string()) }
        })
        .await;
        let fence = &run["fence"];
        assert_eq!(run["output"]["result"]["segments"], json!([{"from": 1, "to": 60, "attempt": 2, "fence": fence}]));
    });
}

#[test]
fn a_second_signal_ends_at_once_with_1() {
    within(TEST, async {
        let db = Db::new().await;
        let mut pod = db.pod("web-0", &["--lease", "60s", "--grace", "60s"]).await;
        let mut blocker = db.client().await;
        let txn = blocker.transaction().await.unwrap();
        txn.batch_execute("LOCK TABLE studio_pods IN SHARE MODE").await.unwrap();
        pod.signal(Signal::TERM);
        pod.log.event("stopping").await;
        let second = Instant::now();
        pod.signal(Signal::TERM);
        assert_eq!(pod.ended().await, Some(1));
        assert!(second.elapsed() < slack(Duration::from_secs(1)), "it took {:?}", second.elapsed());
        txn.rollback().await.unwrap();
    });
}

#[test]
fn a_killed_pods_run_goes_on_elsewhere_under_a_newer_fence() {
    within(TEST, async {
        let db = Db::new().await;
        let survivor = db.pod("survivor", &["--lease", "2s"]).await;
        let mut victim = db.pod("victim", &["--lease", "2s"]).await;
        let run = victim.demo(json!({"chunks": 200, "delay_ms": 20, "resume": "continue"})).await;
        let first = victim.log.event("executing").await;
        victim.signal(Signal::KILL);
        victim.ended().await;
        let second = survivor.log.event("executing").await;
        assert_eq!((&second["run_id"], &second["attempt"]), (&json!(run), &json!(2)));
        assert!(second["fence"].as_i64() > first["fence"].as_i64(), "{second} after {first}");
        let events = db.json(&["events", "--kind", "buried"]).await;
        assert_eq!((&events[0]["pod_id"], &events[0]["by_pod"]), (&json!("victim"), &json!("survivor")));
        let ended = wait_for("the run has succeeded", || async {
            let run = survivor.get(&format!("/v1/runs/{run}")).await.1;
            if run["state"] == "succeeded" { Ok(run) } else { Err(run.to_string()) }
        })
        .await;
        let reasons: Vec<_> = ended["attempts"].as_array().unwrap().iter().map(|a| a["reason"].clone()).collect();
        assert_eq!(reasons, [json!("lost"), json!("succeeded")]);
    });
}

#[test]
fn a_pod_started_with_exit_with_stdin_does_not_outlive_it() {
    within(TEST, async {
        let db = Db::new().await;
        let mut command = db.command(&["pod", "--name", "child", "--exit-with-stdin"]);
        command.stdin(Stdio::piped());
        let mut pod = PodProcess::start(command).await;
        drop(pod.child.stdin.take());
        assert_eq!(pod.ended().await, Some(1));
    });
}

#[test]
fn a_signal_before_the_pod_is_registered_ends_it_with_0() {
    within(TEST, async {
        let db = Db::new().await;
        let _holder = db.pod("name", &[]).await;
        // Waits behind the live holder of its name.
        let mut command = db.command(&["pod", "--name", "name", "--lease", "30s", "--listen", "127.0.0.1:0"]);
        let mut waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let client = db.client().await;
        wait_for("it waits for the lock", || async {
            // In this database: the pods of other tests wait for locks as well.
            let waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database =
                         (SELECT oid FROM pg_database WHERE datname = current_database())";
            let rows = client.query(waits, &[]).await.unwrap();
            if rows.is_empty() { Err("nobody waits".to_owned()) } else { Ok(()) }
        })
        .await;
        signal(waiting.id().unwrap(), Signal::TERM);
        let status = tokio::time::timeout(Duration::from_secs(5), waiting.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0));
    });
}
