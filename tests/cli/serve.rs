//! `podlock serve`, and what needs the admin key on the reference pod.

use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Db, PodProcess, TEST, answer, within};

const KEY: &str = "correct-horse-battery";

async fn ask(process: &PodProcess, path: &str, key: Option<&str>) -> (u16, Value) {
    let url = process.url.replace("0.0.0.0", "127.0.0.1");
    let request = process.http.get(format!("{url}{path}"));
    let request = match key {
        Some(key) => request.bearer_auth(key),
        None => request,
    };
    answer(request.send().await.unwrap()).await
}

/// The endpoints, without being a pod. It ends cleanly on a signal.
#[test]
fn the_history_is_served_by_a_process_that_is_no_pod() {
    within(TEST, async {
        let db = Db::migrated().await;
        let session = "INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at) \
                       VALUES (gen_random_uuid(), 'web-0', now())";
        db.client().await.batch_execute(session).await.unwrap();
        for signal in [Signal::TERM, Signal::INT] {
            let mut command = db.command(&["serve", "--listen", "127.0.0.1:0", "--log-format", "json"]);
            command.env("PODLOCK_ADMIN_KEY", KEY);
            let mut served = PodProcess::start(command).await;
            assert!(served.ready.starts_with("podlock serve listening on http://127.0.0.1:"), "{}", served.ready);
            for path in ["/livez", "/readyz", "/v1/openapi.json"] {
                assert_eq!(ask(&served, path, None).await.0, 200, "{path}");
            }
            let (status, body) = ask(&served, "/v1/pods/web-0/liveness", Some(KEY)).await;
            assert_eq!((status, &body["pod_id"], &body["score"]), (200, &json!("web-0"), &Value::Null), "{body}");
            assert_eq!(ask(&served, "/v1/pods/web-0/liveness", None).await.0, 401);
            assert_eq!(ask(&served, "/v1/runs", Some(KEY)).await.0, 404, "it serves the history alone");
            let foreign = served.http.get(format!("{}/livez", served.url)).header("host", "evil.example");
            assert_eq!(foreign.send().await.unwrap().status(), StatusCode::MISDIRECTED_REQUEST);
            served.signal(signal);
            assert_eq!(served.ended().await, Some(0));
            let log = served.log.all().concat();
            assert!(!log.contains(KEY) && !log.contains("no_admin_key"), "{log}");
        }
    });
}

/// None set = all refused, told so at start.
#[test]
fn without_a_key_all_of_the_history_is_refused_and_the_log_says_so() {
    within(TEST, async {
        let db = Db::migrated().await;
        let served = PodProcess::start(db.command(&["serve", "--listen", "127.0.0.1:0", "--log-format", "json"])).await;
        let pod = db.pod("web-0", &[]).await;
        for process in [&served, &pod] {
            process.log.event("no_admin_key").await;
            let (status, body) = ask(process, "/v1/pods/reliability", Some(KEY)).await;
            assert_eq!((status, &body["kind"]), (403, &json!("no_admin_key")), "{body}");
        }
    });
}

/// `PODLOCK_ADMIN_KEY` and a file of it. No error, log or argument repeats the key.
#[test]
fn the_key_comes_from_the_environment_or_from_a_file_and_not_from_both() {
    within(TEST, async {
        let db = Db::migrated().await;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{KEY}\nanother-key\n")).unwrap();
        let path = file.path().to_str().unwrap();
        let base = ["serve", "--listen", "127.0.0.1:0", "--log-format", "json"];
        let by_flag = db.command(&[&base[..], &["--admin-key-file", path]].concat());
        let mut by_variable = db.command(&base);
        by_variable.env("PODLOCK_ADMIN_KEY_FILE", path).env("PODLOCK_ADMIN_KEY", "");
        for command in [by_flag, by_variable] {
            let served = PodProcess::start(command).await;
            for (key, status) in [(KEY, 200), ("another-key", 200), ("a-third-key", 401)] {
                assert_eq!(ask(&served, "/v1/pods/reliability", Some(key)).await.0, status, "{key}");
            }
        }
        for (key, file, words) in [
            (Some(KEY), Some(path), "both"),
            (Some("horse"), None, "fewer than 8"),
            (Some("correct horse"), None, "visible"),
            (None, Some("/nowhere/key"), "/nowhere/key"),
        ] {
            for verb in ["serve", "pod"] {
                let mut command = db.command(&[verb, "--listen", "127.0.0.1:0"]);
                command.envs(key.map(|key| ("PODLOCK_ADMIN_KEY", key)));
                command.envs(file.map(|file| ("PODLOCK_ADMIN_KEY_FILE", file)));
                let done = crate::harness::finish(command).await;
                assert_ne!(done.code, 0, "{done:?}");
                assert!(done.stderr.contains(words) && !done.all().contains("horse"), "{done:?}");
            }
        }
    });
}

/// The run routes of the reference pod get the same key outside loopback. Probes stay open.
#[test]
fn off_loopback_the_routes_of_runs_and_workers_need_the_key() {
    within(TEST, async {
        let db = Db::migrated().await;
        let run = "/v1/runs/018f0000-0000-7000-8000-000000000000";
        let shut = db.pod("shut", &["--listen", "0.0.0.0:0"]).await;
        shut.log.event("runs_refused").await;
        for path in [run, "/v1/runs?kind=a&key=b", "/v1/workers"] {
            let (status, body) = ask(&shut, path, Some(KEY)).await;
            assert_eq!((status, &body["kind"]), (403, &json!("no_admin_key")), "{path}: {body}");
        }
        for path in ["/livez", "/readyz", "/healthz"] {
            assert_eq!(ask(&shut, path, None).await.0, 200, "{path}");
        }
        let keyed = |name: &'static str, listen: &'static str| {
            let mut command = db.command(&["pod", "--name", name, "--log-format", "json", "--listen", listen]);
            command.env("PODLOCK_ADMIN_KEY", KEY);
            PodProcess::start(command)
        };
        let outside = keyed("outside", "0.0.0.0:0").await;
        for (key, status) in [(Some(KEY), 404), (Some("correct-horse"), 401), (None, 401)] {
            assert_eq!(ask(&outside, run, key).await.0, status, "{key:?}");
        }
        assert_eq!(ask(&outside, "/v1/workers", Some(KEY)).await.0, 200);
        assert_eq!(ask(&outside, "/v1/workers", None).await.0, 401);
        let started = outside.http.post(format!("{}/v1/runs", outside.url.replace("0.0.0.0", "127.0.0.1")));
        let started =
            started.bearer_auth(KEY).json(&json!({"kind": "demo", "input": {"chunks": 1}})).send().await.unwrap();
        assert_eq!(started.status(), StatusCode::CREATED);
        // On loopback they stay open, with a key or without.
        let inside = keyed("inside", "127.0.0.1:0").await;
        assert_eq!(ask(&inside, run, None).await.0, 404);
        assert_eq!(ask(&inside, "/v1/pods/inside/liveness", None).await.0, 401);
        let (status, body) = ask(&inside, "/v1/pods/inside/liveness", Some(KEY)).await;
        assert_eq!((status, &body["in_roster"], &body["state"]), (200, &json!(true), &json!("active")), "{body}");
    });
}
