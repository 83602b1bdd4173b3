//! `podlock history` and `podlock score`.

use serde_json::{Value, json};

use crate::harness::{Db, TEST, fields, within};

/// The names of a score, in their order.
const SCORE: [&str; 8] = [
    "pod_id",
    "score",
    "uptime_pct",
    "mtbf_seconds",
    "p_stays_4h",
    "p_stays_8h",
    "sessions_count",
    "last_disconnect_at",
];

/// A database with the past of three pods: `steady` never ended, `flaky` was killed each hour of a day, and `gone` ended
/// long before the window.
async fn past() -> Db {
    let db = Db::migrated().await;
    let sql = "
        INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at, ended_at, reason, cause, buried_by, exit_signal)
        SELECT gen_random_uuid(), 'flaky', now() - make_interval(hours => h), now() - make_interval(hours => h - 1),
               'lost', 'killed', 'steady', 9
          FROM generate_series(1, 24) h;
        INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at, ended_at, reason)
        VALUES (gen_random_uuid(), 'gone', now() - interval '60 days', now() - interval '59 days', 'shutdown');
        WITH me AS (
          INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at, last_heartbeat_at, runs_served, counters)
          VALUES (gen_random_uuid(), 'steady', now() - interval '20 days', now(), 7, '{\"tokens\": 12}')
          RETURNING incarnation, pod_id)
        INSERT INTO studio_pods (pod_id, version, incarnation, lock_key, witness_key, liveness_pid, liveness_started, event_index)
        SELECT pod_id, '1', incarnation, studio_lock_key(pod_id), studio_witness_key(pod_id), 1, now(), 1 FROM me;";
    db.client().await.batch_execute(sql).await.unwrap();
    db
}

/// Issue: "`podlock score -o json`: array of `pod_id, score, …`; a roll-up can be asked for at once (`podlock history
/// roll-up`)".
#[test]
fn scores_bear_the_names_of_the_contract_after_a_roll_up_and_filters_hold() {
    within(TEST, async {
        let db = past().await;
        assert_eq!(db.json(&["score"]).await, json!([]), "no roll-up was made yet");
        let made = db.json(&["history", "roll-up"]).await;
        assert_eq!(made["scores"], 2, "{made}");
        let scores = db.ok(&["score", "-o", "jsonl"]).await;
        assert_eq!(fields(scores.lines().next().unwrap()), SCORE);
        let scores = db.json(&["score"]).await;
        let names: Vec<&Value> = scores.as_array().unwrap().iter().map(|row| &row["pod_id"]).collect();
        assert_eq!(names, ["steady", "flaky"], "best first");
        let (steady, flaky) = (&scores[0], &scores[1]);
        assert!(steady["score"].as_f64().unwrap() > 0.99, "{steady}");
        assert!(flaky["score"].as_f64().unwrap() < 0.5, "{flaky}");
        assert_eq!((&flaky["sessions_count"], &flaky["p_stays_4h"]), (&json!(24), &json!(0.0)));
        assert_eq!(steady["last_disconnect_at"], json!(null));
        let only = async |args: &[&str]| {
            let rows = db.json(&[&["score"], args].concat()).await;
            rows.as_array().unwrap().iter().map(|row| row["pod_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(only(&["--min-score", "0.9"]).await, ["steady"]);
        assert_eq!(only(&["--max-score", "0.9"]).await, ["flaky"]);
        assert_eq!(only(&["--max-score", "0"]).await, ["steady", "flaky"], "0 is no bound");
        assert_eq!(only(&["--min-stays-4h", "0.5"]).await, ["steady"]);
        assert_eq!(only(&["--min-uptime", "100"]).await.first().map(String::as_str), Some("steady"));
        assert_eq!(only(&["--limit", "1"]).await, ["steady"]);
        let table = db.ok(&["score", "-o", "table"]).await;
        assert!(table.contains("flaky") && table.contains("100 %"), "{table}");
        for bad in [["score", "--min-score", "2"], ["score", "--min-uptime", "NaN"], ["score", "--limit", "0"]] {
            assert_eq!(db.run(&bad).await.code, 2, "{bad:?}");
        }
    });
}

/// Issue: "`podlock history POD` … with `-o json`".
#[test]
fn the_history_of_a_pod_says_how_it_did_and_how_it_ended() {
    within(TEST, async {
        let db = past().await;
        let before = db.json(&["history", "flaky"]).await;
        assert_eq!((&before["score"], &before["in_roster"]), (&json!(null), &json!(false)), "known, and not rated");
        db.ok(&["history", "roll-up"]).await;
        let flaky = db.json(&["history", "flaky", "--limit", "3"]).await;
        assert_eq!(flaky["sessions"].as_array().map(Vec::len), Some(3));
        let last = &flaky["sessions"][0];
        assert_eq!(
            (&last["reason"], &last["cause"], &last["exit_signal"]),
            (&json!("lost"), &json!("killed"), &json!(9))
        );
        assert_eq!(flaky["last_end"]["ended_at"], last["ended_at"]);
        assert!(flaky["score"].is_f64() && flaky["disconnect_reasons"]["lost"] == 24, "{flaky}");
        let steady = db.json(&["history", "steady"]).await;
        assert_eq!((&steady["in_roster"], &steady["sessions"][0]["runs_served"]), (&json!(true), &json!(7)));
        let table = db.ok(&["history", "flaky", "-o", "table"]).await;
        for words in
            ["gone: it is not in the roster", "a signal killed its process", "signal 9", "1 h 0 min", "Sessions:"]
        {
            assert!(table.contains(words), "no {words:?} in\n{table}");
        }
        let unknown = db.run(&["history", "nobody"]).await;
        assert_eq!(unknown.code, 1);
        assert!(unknown.stderr.contains("nothing is known of a pod named \"nobody\""), "{}", unknown.stderr);
        assert_eq!(db.run(&["history"]).await.code, 2, "a pod must be named");
    });
}
