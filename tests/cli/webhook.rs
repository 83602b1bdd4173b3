//! `podlock pod --webhook`.

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Db, PodProcess, TEST, finish, wait_for, within};
use crate::receiver::Receiver;

const SECRET: &str = "whsec_YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4";
const VARIABLE: &str = "PODLOCK_WEBHOOK_SECRET";

/// Issue: "a webhook (signed, retried, bounded) for lost, quarantined, inactive".
#[test]
fn a_killed_pod_is_told_to_the_webhook_of_the_others_and_no_log_has_the_secret() {
    within(TEST, async {
        let db = Db::migrated().await;
        let receiver = Receiver::start().await;
        let mut pods = Vec::new();
        for name in ["a", "b", "c"] {
            let mut command = db.command(&["pod", "--name", name, "--log-format", "json", "--webhook", &receiver.url]);
            command.env("PODLOCK_LEASE", "3s").env(VARIABLE, SECRET).env("PODLOCK_LOG", "podlock=trace");
            pods.push(PodProcess::start(command).await);
        }
        // A pod that stopped cleanly is no alert.
        pods[2].signal(Signal::TERM);
        assert_eq!(pods[2].ended().await, Some(0));
        let client = db.client().await;
        wait_for("both are in the roster alone", || async {
            let row = client.query_one("SELECT count(*) FROM studio_pods", &[]).await.unwrap();
            if row.get::<_, i64>(0) == 2 { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        pods[0].signal(Signal::KILL);
        let got = wait_for("the alert comes", || async {
            receiver.got().first().cloned().ok_or_else(|| "nothing".to_owned())
        })
        .await;
        assert_eq!((&got.alert["type"], &got.alert["pod"]), (&json!("lost"), &json!("a")));
        assert_eq!((&got.alert["by"], &got.alert["reason"]), (&json!("b"), &json!("lost")));
        assert!(got.headers["webhook-signature"].starts_with("v1,"), "{got:?}");
        pods[1].signal(Signal::TERM);
        assert_eq!(pods[1].ended().await, Some(0));
        for pod in &pods {
            let log = pod.log.all().join("\n");
            assert!(!log.contains("YWJjZGVm") && !log.contains("abcdefgh"), "{log}");
            assert!(!log.contains("unknown_setting"), "{log}");
        }
    });
}

#[test]
fn the_secret_comes_from_the_variable_or_from_a_file_and_bad_usage_exits_2() {
    within(TEST, async {
        let db = Db::migrated().await;
        let receiver = Receiver::start().await;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (good, bad, missing) = (path("good"), path("bad"), path("missing"));
        std::fs::write(&good, format!("{SECRET}\nQUJDREVGR0hJSktMTU5PUFFSU1RVVldY\n")).unwrap();
        std::fs::write(&bad, "hunter2").unwrap();
        let url = receiver.url.as_str();
        for (args, variable, code, words) in [
            (vec!["--webhook", url], None, 2, "needs a secret"),
            (vec!["--webhook", url, "--webhook-secret-file", &good], Some(SECRET), 2, "leave one out"),
            (vec!["--webhook-secret-file", &good], None, 2, "--webhook <URL>"),
            (vec!["--webhook", url], Some("hunter2"), 2, "openssl rand -base64 32"),
            (vec!["--webhook", url, "--webhook-secret-file", &bad], None, 2, "openssl rand -base64 32"),
            (vec!["--webhook", url, "--webhook-secret-file", &missing], None, 1, "missing"),
            (vec!["--webhook", "http://alerts.example/"], Some(SECRET), 2, "plain http"),
            (vec!["--webhook", "https://u:hunter2@alerts.example/"], Some(SECRET), 2, "user or a password"),
            (vec!["--webhook", "nonsense"], Some(SECRET), 2, "cannot be read"),
        ] {
            let mut command = db.command(&["pod"]);
            command.args(&args).envs(variable.map(|secret| (VARIABLE, secret)));
            let done = finish(command).await;
            assert_eq!(done.code, code, "{args:?}: {done:?}");
            assert!(done.stderr.contains(words) && !done.stderr.contains("hunter2"), "{args:?}: {done:?}");
        }
        let mut command = db.command(&["pod", "--name", "a", "--webhook", url, "--webhook-secret-file", &good]);
        command.env("PODLOCK_LEASE", "3s");
        let _pod = PodProcess::start(command).await;
        let client = db.client().await;
        wait_for("the pod delivers", || async {
            let sql = "SELECT FROM studio_webhooks WHERE incarnation IS NOT NULL";
            if client.query(sql, &[]).await.unwrap().len() == 1 { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        let sql = "SELECT studio_append_event('workers_inactive', 'w', gen_random_uuid(), 'w', '{\"workers\": 1}')";
        client.query_one(sql, &[]).await.unwrap();
        let got = wait_for("the alert comes", || async {
            receiver.got().first().cloned().ok_or_else(|| "nothing".to_owned())
        })
        .await;
        assert_eq!(got.headers["webhook-signature"].split(' ').count(), 2, "both secrets of the file sign: {got:?}");
    });
}
