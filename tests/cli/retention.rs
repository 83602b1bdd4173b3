//! Pruning by hand, and starting ended runs again.

use serde_json::json;

use crate::harness::{Db, TEST, wait_for, within};

#[test]
fn prune_says_what_it_would_delete_deletes_it_and_keeps_what_is_not_named() {
    within(TEST, async {
        let db = Db::new().await;
        db.ok(&["migrate", "up"]).await;
        let client = db.client().await;
        let old = "INSERT INTO studio_runs (run_id, kind, state, finished_at) \
                   SELECT gen_random_uuid(), 'old', s, now() - interval '8 days' \
                   FROM unnest(ARRAY['succeeded', 'cancelled', 'failed']) s, \
                   generate_series(1, 2); \
                   SELECT studio_append_event(k, 'x', '00000000-0000-0000-0000-000000000001', 'x', '{}') \
                   FROM unnest(ARRAY['joined', 'draining', 'buried']) k; \
                   UPDATE studio_pod_events SET at = now() - interval '8 days'";
        client.batch_execute(old).await.unwrap();
        let what = ["--runs-older-than", "7d", "--events-older-than", "7d"];
        let would = db.json(&[&["prune", "--dry-run"][..], &what].concat()).await;
        assert_eq!(would, json!({"runs": 4, "events": 2, "sessions": 0, "kept": []}));
        assert_eq!(db.json(&[&["prune"][..], &what].concat()).await, would, "as it said");
        let nothing = json!({"runs": 0, "events": 0, "sessions": 0, "kept": []});
        assert_eq!(db.json(&[&["prune"][..], &what].concat()).await, nothing);
        let left = db.json(&["runs", "list"]).await;
        assert_eq!(left.as_array().unwrap().iter().filter(|r| r["state"] == "failed").count(), 2, "{left}");
        let events = db.json(&["events", "--kind", "snapshot"]).await;
        assert_eq!(events[0]["detail"], json!({"roster": [], "suspected": {}}));
        assert!(db.ok(&["events"]).await.contains("pods=0"));
        assert_eq!(db.ok(&["prune", "--failed-older-than", "1h"]).await, "runs      2\nevents    0\nsessions  0\n");
        // What a table of the service's own keeps is passed over, and named.
        let kept = "INSERT INTO studio_runs (run_id, kind, state, finished_at) \
                      SELECT gen_random_uuid(), 'old', 'failed', now() - interval '8 days' FROM generate_series(1, 3); \
                    CREATE TABLE answers (run_id uuid REFERENCES studio_runs (run_id)); \
                    INSERT INTO answers SELECT run_id FROM studio_runs WHERE state = 'failed' LIMIT 2";
        client.batch_execute(kept).await.unwrap();
        let text = db.ok(&["prune", "--failed-older-than", "1h"]).await;
        assert!(text.starts_with("runs      1\n") && text.contains("kept      2 run(s), the first "), "{text}");
        assert!(text.contains("answers_run_id_fkey"), "{text}");
        for (args, code, word) in [
            (&["prune"][..], 2, "--runs-older-than"),
            (&["prune", "--dry-run"], 2, "--runs-older-than"),
            (&["prune", "--runs-older-than", "soon"], 2, "soon"),
            (&["prune", "--runs-older-than", "59m"], 2, "must be from 1h to 365000d"),
            (&["prune", "--events-older-than", "365001d"], 2, "must be from 1h to 365000d"),
            (&["prune", "--events-older-than", "365000d"], 0, ""),
        ] {
            let done = db.run(args).await;
            assert!(done.code == code && done.stderr.contains(word), "{args:?}: {done:?}");
        }
    });
}

#[test]
fn an_ended_run_is_started_again() {
    within(TEST, async {
        let db = Db::new().await;
        let pod = db.pod("web-0", &[]).await;
        let first = pod.demo(json!({"chunks": 2, "delay_ms": 1})).await;
        let ended = async |run: String| {
            let db = &db;
            wait_for("it has ended", || async {
                let shown = db.json(&["runs", "describe", &run]).await;
                if shown["state"] == "succeeded" { Ok(shown) } else { Err(shown.to_string()) }
            })
            .await
        };
        let before = ended(first.to_string()).await;
        let answer = db.json(&["runs", "restart", &first]).await;
        assert_eq!(answer["restart_of"], json!(first));
        let after = ended(answer["run_id"].as_str().unwrap().to_owned()).await;
        assert_eq!((&after["kind"], &after["input"]), (&before["kind"], &before["input"]));
        assert_ne!(after["run_id"], before["run_id"]);
        let text = db.ok(&["runs", "restart", &first]).await;
        assert!(text.contains("is started with what run"), "{text}");
        let none = "01890000-0000-7000-8000-000000000000";
        let done = db.run(&["runs", "restart", none]).await;
        assert!(done.code == 1 && done.stderr.contains(&format!("there is no run {none}")), "{done:?}");
    });
}
