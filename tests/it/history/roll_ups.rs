//! Roll-ups: hourly rows, reliability and scores.

use std::collections::BTreeMap;
use std::time::Duration;

use podlock::operator::RolledUp;
use podlock::{Config, Operator};
use serde_json::Value;
use tokio_postgres::Row;

use crate::patience::SOON;
use crate::support::sql::Client;
use crate::support::{Db, eventually, start, timed};

async fn operator(db: &Db) -> Operator {
    Operator::connect(&Config::new(&db.pod_url)).await.expect("an operator, with the rights of pods")
}

async fn operator_by(db: &Db, label: &str) -> Operator {
    let config = Config::new(&db.pod_url).with(|c| c.score_by = label.into());
    Operator::connect(&config).await.expect("an operator")
}

/// Partitions of samples for so many days back. Those of pods and migrations stay.
async fn days(client: &Client, back: i32) {
    let sql = format!(
        "DO $$ DECLARE day timestamptz; BEGIN FOR i IN -1..{back} LOOP \
           day := date_trunc('day', now(), 'UTC') - i * interval '1 day'; \
           BEGIN \
             EXECUTE format('CREATE TABLE studio_test_samples_%s PARTITION OF studio_pod_heartbeats \
               FOR VALUES FROM (%L) TO (%L)', i + 1, day, day + interval '1 day'); \
           EXCEPTION WHEN invalid_object_definition THEN NULL; END; END LOOP; END $$"
    );
    client.batch_execute(&sql).await.expect("partitions");
}

/// A sample so many hours before the beginning of the current hour.
async fn sample(client: &Client, pod: &str, hours_back: f64, health: &str, value: Option<f32>) {
    let sql = "INSERT INTO studio_pod_heartbeats (pod_id, incarnation, number, sampled_at, status, health, cpu_usage, \
               memory_pressure, memory_available, running_runs) SELECT $1, gen_random_uuid(), 1, \
               date_trunc('hour', now(), 'UTC') - make_interval(secs => $2::float8 * 3600), 'active', $3, $4::real, \
               $4::real, ($4::real * 1000)::bigint, 0";
    client.execute(sql, &[&pod, &hours_back, &health, &value]).await.expect("a sample");
}

/// An hourly row: samples, processor, memory, worst health, memory left.
type Hour = (i64, Option<f64>, Option<f64>, String, Option<f64>);

/// The hourly rows of a pod, by how many hours before the current one they begin.
async fn hours(client: &Client, pod: &str) -> BTreeMap<i64, Hour> {
    let sql = "SELECT (extract(epoch FROM date_trunc('hour', now(), 'UTC') - hour) / 3600)::bigint, heartbeat_count, \
               avg_cpu_usage, avg_memory_pressure, max_health, avg_memory_available \
               FROM studio_pod_heartbeats_hourly WHERE pod_id = $1";
    let rows = client.query(sql, &[&pod]).await.expect("hourly rows");
    rows.iter().map(|r| (r.get(0), (r.get(1), r.get(2), r.get(3), r.get(4), r.get(5)))).collect()
}

/// "Hourly […], whole hours, upsert, two hours back or as far as it fell behind, worst health by severity and not by
/// alphabet".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hours_that_are_over_get_rows_with_the_worst_health_by_severity() {
    timed(async {
        let db = Db::new().await;
        days(&db.client, 30).await;
        for (back, health, value) in [
            (1.0, "serious", Some(0.25)),
            (0.75, "fair", Some(0.75)),
            (0.001, "nominal", None),
            (30.5, "fair", Some(0.5)),
            (30.25, "critical", Some(0.5)),
            (600.0, "of a newer version", None),
            // The current hour is not over.
            (0.0, "critical", Some(0.5)),
        ] {
            sample(&db.client, "a", back, health, value).await;
        }
        let operator = operator(&db).await;
        let rolled = operator.roll_up().await.unwrap();
        assert_eq!(rolled.hours, 3);
        let expected: BTreeMap<i64, Hour> = [
            (1, (3, Some(0.5), Some(0.5), "serious".into(), Some(500.0))),
            (31, (2, Some(0.5), Some(0.5), "critical".into(), Some(500.0))),
            (600, (1, None, None, "nominal".into(), None)),
        ]
        .into();
        assert_eq!(hours(&db.client, "a").await, expected);
        // Idempotent, and nothing is written where nothing changed.
        assert_eq!(operator.roll_up().await.unwrap().hours, 0);
        assert_eq!(hours(&db.client, "a").await, expected);
        // Late samples: the two last hours are made again, and from all samples, an earlier one is not.
        sample(&db.client, "a", 0.5, "critical", Some(0.5)).await;
        sample(&db.client, "a", 2.0, "fair", Some(0.5)).await;
        sample(&db.client, "a", 30.5, "critical", Some(0.5)).await;
        assert_eq!(operator.roll_up().await.unwrap().hours, 2);
        let seen = hours(&db.client, "a").await;
        assert_eq!(seen[&1], (4, Some(0.5), Some(0.5), "critical".into(), Some(500.0)));
        assert_eq!((seen[&2].0, seen[&31].0), (1, 2));
        // As if no pod had made roll-ups for two days: as far as it fell behind.
        let back = "UPDATE studio_roll_ups SET upto = upto - interval '48 hours' WHERE what = 'hourly'";
        db.client.batch_execute(back).await.unwrap();
        assert_eq!(operator.roll_up().await.unwrap().hours, 1);
        assert_eq!(hours(&db.client, "a").await[&31].0, 3);
    })
    .await;
}

/// "As far as it fell behind": hour by hour, and a pod that dies half-way loses nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_up_that_died_half_way_is_continued() {
    timed(async {
        let db = Db::new().await;
        days(&db.client, 12).await;
        for hour in 0..240 {
            sample(&db.client, "a", f64::from(hour) + 0.5, "nominal", None).await;
        }
        // The statement fails at an hour in the middle.
        let trap = "CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                    IF NEW.hour = date_trunc('hour', now(), 'UTC') - interval '100 hours' THEN \
                      RAISE EXCEPTION 'here it dies'; END IF; RETURN NEW; END $$; \
                    CREATE TRIGGER trap BEFORE INSERT ON studio_pod_heartbeats_hourly \
                      FOR EACH ROW EXECUTE FUNCTION trap()";
        db.client.batch_execute(trap).await.unwrap();
        let first = operator(&db).await;
        let died = first.roll_up().await.unwrap_err();
        assert!(died.to_string().contains("here it dies"), "{died}");
        let made = hours(&db.client, "a").await;
        assert!(!made.is_empty() && made.keys().all(|back| *back > 100), "{:?}", made.keys());
        // The scores did not wait for the hours.
        let done: bool =
            db.client.scalar("SELECT done_at IS NOT NULL FROM studio_roll_ups WHERE what = 'reliability'", &[]).await;
        assert!(done);
        // Its claim stands for a minute of silence, then another continues.
        let silent = "DROP TRIGGER trap ON studio_pod_heartbeats_hourly; \
                      UPDATE studio_roll_ups SET claimed_at = claimed_at - interval '2 minutes'";
        db.client.batch_execute(silent).await.unwrap();
        let rolled = operator(&db).await.roll_up().await.unwrap();
        let all = hours(&db.client, "a").await;
        assert_eq!(all.len(), 240);
        assert_eq!(usize::try_from(rolled.hours).unwrap(), 240 - made.len(), "it began where the first one had got to");
    })
    .await;
}

/// A session so many hours ago, and how long it lasted. No reason: it is open.
async fn session(client: &Client, pod: &str, began: f64, hours: f64, reason: Option<&str>, node: Option<&str>) {
    let sql = "INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at, ended_at, reason, labels) SELECT \
               gen_random_uuid(), $1, now() - make_interval(secs => $2::float8 * 3600), CASE WHEN $4::text IS NOT NULL THEN \
               now() - make_interval(secs => ($2::float8 - $3::float8) * 3600) END, $4, \
               CASE WHEN $5::text IS NULL THEN '{}' ELSE jsonb_build_object('node', $5::text) END";
    client.execute(sql, &[&pod, &began, &hours, &reason, &node]).await.expect("a session");
    if reason.is_none() {
        in_roster(client, pod).await;
    }
}

/// Puts the newest incarnation of a name into the roster, as a row that no process stands behind. No pod lives in these
/// databases.
async fn in_roster(client: &Client, pod: &str) {
    let sql = "INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, witness_key, liveness_pid, \
               liveness_started) SELECT pod_id, '', 0, incarnation, hashtextextended(pod_id, 7), \
               hashtextextended(pod_id, 8), 1, now() \
               FROM studio_pod_sessions WHERE pod_id = $1 AND ended_at IS NULL ORDER BY began_at DESC LIMIT 1";
    client.execute(sql, &[&pod]).await.expect("a row in the roster");
}

async fn reliability(client: &Client, pod: &str) -> Option<Row> {
    client.query_opt("SELECT * FROM studio_pod_reliability WHERE pod_id = $1", &[&pod]).await.expect("reliability")
}

fn number(row: &Row, column: &str) -> f64 {
    row.get::<_, Option<f64>>(column).unwrap_or(f64::NAN)
}

/// Within a minute of an hour's numbers, for the test takes time.
fn near(seen: f64, expected: f64, by: f64) {
    assert!((seen - expected).abs() <= by, "{seen} is not {expected}");
}

/// "Reliability […] over 14 days", each column, by hand: a fleet of months.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_of_months_has_the_numbers_that_were_computed_by_hand() {
    timed(async {
        let db = Db::new().await;
        let day = 24.0;
        let c = &db.client;
        // Up for 90 days without an end.
        session(c, "steady", 90.0 * day, 0.0, None, None).await;
        // For three months, each day: up for 6 h, crashes, up again 6 h later for 12 h, clean stop. Now it is down.
        for d in 1..=90 {
            let began = f64::from(d) * day;
            session(c, "daily", began, 6.0, Some("lost"), None).await;
            session(c, "daily", began - 12.0, 12.0, Some("shutdown"), None).await;
        }
        // Seen 60 days ago, and then for the last 7 days.
        session(c, "back", 60.0 * day, 1.0, Some("lost"), None).await;
        session(c, "back", 7.0 * day, 0.0, None, None).await;
        // Seen for the first time 10 h ago, up for 5 of them.
        session(c, "young", 10.0, 5.0, Some("evicted"), None).await;
        // All of it is too old.
        session(c, "gone", 40.0 * day, 20.0 * day, Some("lost"), None).await;
        session(c, "new", 0.0, 0.0, None, None).await;
        let rolled = operator(&db).await.roll_up().await.unwrap();
        assert_eq!((rolled.scores, rolled.old_scores), (5, 0), "{rolled:?}");
        assert!(reliability(c, "gone").await.is_none());

        let row = reliability(c, "steady").await.unwrap();
        near(number(&row, "uptime_pct"), 100.0, 0.0);
        near(number(&row, "mtbf_seconds"), 14.0 * 86_400.0, 1.0);
        near(number(&row, "last_session_seconds"), 90.0 * 86_400.0, 60.0);
        near(number(&row, "score"), 1.0, 0.001);
        assert_eq!((row.get::<_, i64>("sessions_count"), row.get::<_, i32>("window_days")), (1, 14));
        assert_eq!(row.get::<_, Value>("disconnect_reasons"), serde_json::json!({}));

        // 18 of 24 hours; a crash in each 18 h; 14 sessions of each kind; of those that say something of 4 h all stayed,
        // of 8 h those of 12 h, half.
        let row = reliability(c, "daily").await.unwrap();
        near(number(&row, "uptime_pct"), 75.0, 0.01);
        near(number(&row, "mtbf_seconds"), 18.0 * 3600.0, 60.0);
        assert_eq!(row.get::<_, i64>("sessions_count"), 28);
        near(number(&row, "p10_session_seconds"), 6.0 * 3600.0, 0.01);
        near(number(&row, "median_session_seconds"), 12.0 * 3600.0, 0.01);
        near(number(&row, "p90_session_seconds"), 12.0 * 3600.0, 0.01);
        near(number(&row, "p_stays_4h"), 1.0, 0.0);
        near(number(&row, "p_stays_8h"), 0.5, 0.0);
        assert_eq!(row.get::<_, Value>("disconnect_reasons"), serde_json::json!({"lost": 14, "shutdown": 14}));
        near(number(&row, "last_session_seconds"), 12.0 * 3600.0, 0.01);
        // The last clean end was just now; the last crash 18 h ago.
        let since: f64 = c
            .scalar(
                "SELECT extract(epoch FROM now() - last_disconnect_at)::float8 FROM studio_pod_reliability \
                     WHERE pod_id = 'daily'",
                &[],
            )
            .await;
        near(since, 0.0, 60.0);
        near(number(&row, "score"), 0.35 * 0.75 + 0.25 + 0.15 * 0.5 + 0.25 - 0.10 * 0.25, 0.001);
        let week: Value = row.get("hourly_availability");
        let shares: Vec<f64> =
            week.as_array().unwrap().iter().flat_map(|d| d.as_array().unwrap()).map(|h| h.as_f64().unwrap()).collect();
        assert_eq!((week.as_array().unwrap().len(), shares.len()), (7, 168));
        near(shares.iter().sum::<f64>() / 168.0, 0.75, 0.001);

        near(number(&reliability(c, "back").await.unwrap(), "uptime_pct"), 50.0, 0.01);
        let row = reliability(c, "young").await.unwrap();
        near(number(&row, "uptime_pct"), 50.0, 0.3);
        near(number(&row, "mtbf_seconds"), 5.0 * 3600.0, 1.0);
        let row = reliability(c, "new").await.unwrap();
        assert!(number(&row, "score") < 0.01, "brand new: {}", number(&row, "score"));
        assert_eq!(row.get::<_, Option<f64>>("p_stays_4h"), None);
    })
    .await;
}

/// "By pod name, or by a label (`score_by = node`) where names are random."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scores_by_a_label_take_the_sessions_of_all_its_pods() {
    timed(async {
        let db = Db::new().await;
        let c = &db.client;
        // Node n1: two pods of random names side by side, and one before. Covered: 8 of the last 10 hours, once.
        session(c, "x1", 10.0, 4.0, Some("lost"), Some("n1")).await;
        session(c, "x2", 8.0, 3.0, Some("lost"), Some("n1")).await;
        session(c, "x3", 3.0, 0.0, None, Some("n1")).await;
        session(c, "x4", 2.0, 0.0, None, Some("n1")).await;
        session(c, "y1", 4.0, 0.0, None, Some("n2")).await;
        session(c, "plain", 1.0, 0.0, None, None).await;
        let names = async || -> Vec<String> {
            let rows = c.query("SELECT pod_id FROM studio_pod_reliability ORDER BY 1", &[]).await.unwrap();
            rows.iter().map(|r| r.get(0)).collect()
        };
        operator(&db).await.roll_up().await.unwrap();
        assert_eq!(names().await, ["plain", "x1", "x2", "x3", "x4", "y1"]);
        let rolled = operator_by(&db, "node").await.roll_up().await.unwrap();
        assert_eq!(
            (rolled.scores, rolled.old_scores),
            (3, 5),
            "the pods without the label keep their names: {rolled:?}"
        );
        assert_eq!(names().await, ["n1", "n2", "plain"]);
        let row = reliability(c, "n1").await.unwrap();
        near(number(&row, "uptime_pct"), 80.0, 0.2);
        near(number(&row, "mtbf_seconds"), 4.0 * 3600.0, 30.0);
        assert_eq!(row.get::<_, i64>("sessions_count"), 4);
        // An operator that names no label does as was done last, and the view shows the node's score.
        operator(&db).await.roll_up().await.unwrap();
        assert_eq!(names().await, ["n1", "n2", "plain"]);
        let score: f64 = c.scalar("SELECT score FROM studio_pod_history WHERE pod_id = 'x4'", &[]).await;
        assert_eq!(score, number(&reliability(c, "n1").await.unwrap(), "score"));
    })
    .await;
}

/// "Groups whose sessions all left the window are deleted", and an open row that no incarnation of the roster stands
/// behind ended with its last sample.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scores_go_with_their_last_session_and_a_row_left_open_ended_with_its_last_sample() {
    timed(async {
        let db = Db::new().await;
        let c = &db.client;
        session(c, "old", 20.0 * 24.0, 7.0 * 24.0, Some("lost"), None).await;
        session(c, "stray", 10.0, 0.0, None, None).await;
        let sql = "DELETE FROM studio_pods; UPDATE studio_pod_sessions SET last_heartbeat_at = now() - interval '4 h' \
                   WHERE pod_id = 'stray'";
        c.batch_execute(sql).await.unwrap();
        let operator = operator(&db).await;
        operator.roll_up().await.unwrap();
        let row = reliability(c, "stray").await.unwrap();
        near(number(&row, "uptime_pct"), 60.0, 0.2);
        near(number(&row, "last_session_seconds"), 6.0 * 3600.0, 1.0);
        assert_eq!(row.get::<_, Value>("disconnect_reasons"), serde_json::json!({"lost": 1}));
        let seconds: f64 = c.scalar("SELECT seconds FROM studio_pod_history WHERE pod_id = 'stray'", &[]).await;
        near(seconds, 6.0 * 3600.0, 1.0);
        assert!(reliability(c, "old").await.is_some());
        c.batch_execute(
            "UPDATE studio_pod_sessions SET began_at = began_at - interval '5 d', \
                         ended_at = ended_at - interval '5 d' WHERE pod_id = 'old'",
        )
        .await
        .unwrap();
        assert_eq!(operator.roll_up().await.unwrap().old_scores, 1);
        assert!(reliability(c, "old").await.is_none());
    })
    .await;
}

/// "Two pods racing a rollup": the first has its claim, and stands still before its write. Another takes over, and the
/// write of the first changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_race_one_makes_the_roll_up_and_the_other_is_refused() {
    timed(async {
        let db = Db::new().await;
        let c = &db.client;
        session(c, "a", 10.0, 0.0, None, None).await;
        // The first stands still as it writes its first score: a trigger waits for a lock of the test's.
        let trap = "CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                      PERFORM pg_advisory_xact_lock(77); RETURN NEW; END $$; \
                    CREATE TRIGGER trap BEFORE INSERT OR UPDATE ON studio_pod_reliability \
                      FOR EACH ROW EXECUTE FUNCTION trap(); SELECT pg_advisory_lock(77)";
        c.batch_execute(trap).await.unwrap();
        let config = Config::new(&db.pod_url).with(|c| c.statement_timeout = Some(SOON));
        let first = Operator::connect(&config).await.unwrap();
        let first = tokio::spawn(async move { first.roll_up().await });
        eventually(SOON, "the first waits in its write", || async {
            let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 77";
            if c.scalar::<i64>(sql, &[]).await == 1 { Ok(()) } else { Err("it does not".into()) }
        })
        .await;
        // Its row is locked by the statement under way. A pod that tries passes it over, and does not wait.
        let tokens = "SELECT token FROM studio_roll_ups WHERE what = 'reliability'";
        let token: Option<uuid::Uuid> = c.scalar(tokens, &[]).await;
        let pod = start(db.config("b").with(|c| c.roll_up_interval = Duration::from_millis(100))).await;
        eventually(SOON, "the pod made the hourly roll-up and passed over the other", || async {
            let by: Option<String> = c
                .scalar("SELECT claimed_by FROM studio_roll_ups WHERE what = 'hourly' AND done_at IS NOT NULL", &[])
                .await;
            if by.as_deref() == Some("b") { Ok(()) } else { Err(format!("{by:?}")) }
        })
        .await;
        assert_eq!(c.scalar::<Option<uuid::Uuid>>(tokens, &[]).await, token, "still the first one's");
        assert!(reliability(c, "a").await.is_none());
        c.batch_execute("SELECT pg_advisory_unlock(77)").await.unwrap();
        let rolled = first.await.unwrap().unwrap();
        assert!(rolled.scores >= 1, "{rolled:?}");
        assert!(reliability(c, "a").await.is_some());
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// The one that was replaced while it was silent writes nothing any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_with_the_token_of_one_that_was_replaced_changes_nothing() {
    timed(async {
        let db = Db::new().await;
        let c = &db.client;
        session(c, "a", 10.0, 0.0, None, None).await;
        // When the first has loaded and computed, it is silent: another has taken its place before its write. The trigger
        // stands for that other, and runs as the first says for the second time that it goes on.
        let trap = "CREATE TABLE replaced (n int); INSERT INTO replaced VALUES (0); \
                    CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public \
                    AS $$ BEGIN \
                      IF NEW.what = 'reliability' AND NEW.slice = 0 AND OLD.slice IS NULL THEN \
                        UPDATE replaced SET n = n + 1; \
                        IF (SELECT n FROM replaced) = 1 THEN \
                          NEW.token := '00000000-0000-0000-0000-000000000099'; END IF; END IF; \
                      RETURN NEW; END $$; \
                    CREATE TRIGGER trap BEFORE UPDATE ON studio_roll_ups FOR EACH ROW EXECUTE FUNCTION trap()";
        c.batch_execute(trap).await.unwrap();
        let operator = operator(&db).await;
        let first = tokio::spawn(async move { operator.roll_up().await });
        eventually(SOON, "the first was replaced", || async {
            let n: i32 = c.scalar("SELECT n FROM replaced", &[]).await;
            if n == 1 { Ok(()) } else { Err(format!("{n}")) }
        })
        .await;
        tokio::task::yield_now().await;
        assert!(reliability(c, "a").await.is_none());
        let token: Option<uuid::Uuid> =
            c.scalar("SELECT token FROM studio_roll_ups WHERE what = 'reliability'", &[]).await;
        assert_eq!(token, Some(uuid::Uuid::from_u128(0x99)), "the first took nothing back");
        assert!(!first.is_finished(), "it waits for the other");
        // The other falls silent in its turn.
        c.batch_execute("UPDATE studio_roll_ups SET claimed_at = now() - interval '2 minutes'").await.unwrap();
        assert_eq!(first.await.unwrap().unwrap().scores, 1);
    })
    .await;
}

/// "By one pod at a time […] every 5 min": who comes within the interval skips, whoever made the last one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_makes_the_roll_ups_when_they_are_due_and_a_clock_that_jumped_does_not_stop_them() {
    timed(async {
        let db = Db::new().await;
        let c = &db.client;
        // Both were made in a future that the server's clock has left again, and a claim is from there as well.
        let jumped = "UPDATE studio_roll_ups SET done_at = now() + interval '1 year', upto = now() + interval '1 year', \
                      token = gen_random_uuid(), claimed_at = now() + interval '1 year'";
        c.batch_execute(jumped).await.unwrap();
        days(c, 2).await;
        sample(c, "x", 0.5, "fair", None).await;
        let (a, b) = tokio::join!(
            start(db.config("a").with(|c| c.roll_up_interval = Duration::from_millis(200))),
            start(db.config("b").with(|c| c.roll_up_interval = Duration::from_millis(200)))
        );
        eventually(SOON, "both roll-ups were made by the clock as it is now", || async {
            let sql = "SELECT bool_and(done_at <= now() AND upto IS NOT DISTINCT FROM CASE WHEN what = 'hourly' THEN \
                       date_trunc('hour', now(), 'UTC') ELSE upto END AND claimed_by IN ('a', 'b')) FROM studio_roll_ups";
            if c.scalar::<bool>(sql, &[]).await { Ok(()) } else { Err("not yet".into()) }
        })
        .await;
        assert_eq!(hours(c, "x").await[&1].0, 1, "from the hours before this one, and not from next year on");
        eventually(SOON, "the pods have scores", || async {
            let names: i64 = c.scalar("SELECT count(*) FROM studio_pod_reliability WHERE pod_id IN ('a', 'b')", &[]).await;
            if names == 2 { Ok(()) } else { Err(format!("{names}")) }
        })
        .await;
        let score = number(&reliability(c, "a").await.unwrap(), "score");
        assert!(score < 0.01, "brand new: {score}");
        a.shutdown(SOON).await.unwrap();
        b.shutdown(SOON).await.unwrap();
        // Within the interval: nobody makes them.
        let c_pod = start(db.config("c").with(|c| c.roll_up_interval = Duration::from_secs(3600))).await;
        c.batch_execute("UPDATE studio_roll_ups SET done_at = now() - interval '30 minutes', token = NULL").await.unwrap();
        let claim = "SELECT max(done_at)::text FROM studio_roll_ups";
        let before: String = c.scalar(claim, &[]).await;
        let other = start(db.config("d").with(|c| c.roll_up_interval = Duration::from_secs(3600))).await;
        assert_eq!(c.scalar::<String>(claim, &[]).await, before);
        // Asked for at once, it is made.
        let RolledUp { scores, .. } = other.operator().roll_up().await.unwrap();
        assert!(scores >= 2, "{scores}");
        assert_ne!(c.scalar::<String>(claim, &[]).await, before);
        c_pod.shutdown(SOON).await.unwrap();
        other.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// Rows in the future, and rows that end before they begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_a_clock_that_jumped_give_numbers_within_their_bounds_and_one_bad_row_stops_no_other() {
    timed(async {
        let db = Db::new().await;
        let c = &db.client;
        session(c, "future", -5.0, 1.0, Some("lost"), None).await;
        session(c, "backwards", 5.0, -3.0, Some("lost"), None).await;
        session(c, "later", -2.0, 0.0, None, None).await;
        session(c, "good", 48.0, 0.0, None, None).await;
        let odd = "INSERT INTO studio_pod_sessions (incarnation, pod_id, began_at, ended_at, reason) VALUES \
                   (gen_random_uuid(), 'odd', '-infinity', 'infinity', 'lost'), \
                   (gen_random_uuid(), 'odd', 'infinity', NULL, NULL)";
        c.batch_execute(odd).await.unwrap();
        operator(&db).await.roll_up().await.unwrap();
        for pod in ["future", "backwards", "later"] {
            let row = reliability(c, pod).await.unwrap();
            let (uptime, score) = (row.get::<_, Option<f64>>("uptime_pct"), number(&row, "score"));
            assert!(
                uptime.is_none_or(|u| (0.0..=100.0).contains(&u)) && (0.0..=1.0).contains(&score),
                "{pod}: {row:?}"
            );
            assert!(number(&row, "mtbf_seconds") >= 0.0 && number(&row, "last_session_seconds") >= 0.0, "{pod}");
        }
        assert!(number(&reliability(c, "good").await.unwrap(), "score") > 0.999);
        let late: i64 =
            c.scalar("SELECT count(*) FROM studio_pod_reliability WHERE last_disconnect_at > now()", &[]).await;
        assert_eq!(late, 0);
    })
    .await;
}

/// "Never block": a row that somebody has locked is passed over, and the others are written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_locked_row_is_passed_over_and_the_others_are_written() {
    timed(async {
        let db = Db::new().await;
        let c = &db.client;
        days(c, 2).await;
        for pod in ["a", "b"] {
            session(c, pod, 48.0, 0.0, None, None).await;
            sample(c, pod, 0.5, "nominal", None).await;
        }
        let operator = operator(&db).await;
        operator.roll_up().await.unwrap();
        for pod in ["a", "b"] {
            sample(c, pod, 0.6, "nominal", None).await;
        }
        c.batch_execute("UPDATE studio_pod_reliability SET score = 0.5").await.unwrap();
        let hold = "BEGIN; SELECT FROM studio_pod_reliability WHERE pod_id = 'a' FOR UPDATE; \
                    SELECT FROM studio_pod_heartbeats_hourly WHERE pod_id = 'a' FOR UPDATE";
        c.batch_execute(hold).await.unwrap();
        let rolled = operator.roll_up().await.unwrap();
        assert_eq!((rolled.scores, rolled.hours, rolled.old_scores), (1, 1, 0), "{rolled:?}");
        c.batch_execute("COMMIT").await.unwrap();
        let rolled = operator.roll_up().await.unwrap();
        assert_eq!(rolled.hours, 1, "{rolled:?}");
        assert!(number(&reliability(c, "a").await.unwrap(), "score") > 0.99);
    })
    .await;
}

/// "Retention of the rest in batches, resumable": hourly rows go after 400 days, and no younger than an hour whoever asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_hourly_rows_go_in_batches() {
    timed(async {
        let db = Db::new().await;
        let c = &db.client;
        let rows = "INSERT INTO studio_pod_heartbeats_hourly (pod_id, hour, heartbeat_count, max_health) \
                    SELECT 'p' || n % 10, date_trunc('hour', now()) - d * interval '1 day' - n * interval '1 hour', 1, \
                    'nominal' FROM generate_series(1, 2500) n, (VALUES (1), (401)) AS v (d)";
        c.batch_execute(rows).await.unwrap();
        let old: i64 = c
            .scalar("SELECT count(*) FROM studio_pod_heartbeats_hourly WHERE hour < now() - interval '400 d'", &[])
            .await;
        let rolled = operator(&db).await.roll_up().await.unwrap();
        assert_eq!((rolled.old_hours, old >= 2500), (old, true));
        let left: i64 = c.scalar("SELECT count(*) FROM studio_pod_heartbeats_hourly", &[]).await;
        assert_eq!(left, 5000 - old);
        let as_pod = crate::support::sql::connect(&db.pod_url).await;
        for age in ["interval '59 minutes'", "NULL", "interval '-1 day'"] {
            let refused = as_pod.query(&format!("SELECT studio_prune_hours({age}, 9)"), &[]).await.expect_err(age);
            assert_eq!(refused.code().map(|c| c.code()), Some("22023"), "{age}");
        }
    })
    .await;
}

/// The view for people, in one row: who died, of what, who took over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_view_shows_the_life_of_each_incarnation_and_who_took_over_its_runs() {
    timed(async {
        let db = Db::new().await;
        let [a, b] = db.settled_pods().await;
        let run = a.start(podlock::NewRun::new("wait")).await.unwrap().run_id;
        let died = a.incarnation();
        drop(a);
        db.client.run_owned_by(run, b.incarnation(), SOON).await;
        b.operator().roll_up().await.unwrap();
        let sql = "SELECT * FROM studio_pod_history WHERE incarnation = $1";
        let row = db.client.query_one(sql, &[&died.as_uuid()]).await.unwrap();
        assert_eq!((row.get::<_, &str>("pod_id"), row.get::<_, &str>("reason")), ("a", "lost"));
        assert_eq!(row.get::<_, &str>("buried_by"), "b");
        assert_eq!(row.get::<_, i64>("runs_taken_over"), 1);
        assert_eq!(row.get::<_, Vec<String>>("taken_over_by"), ["b"]);
        assert!(row.get::<_, f64>("seconds") > 0.0 && row.get::<_, Option<f64>>("score").is_some());
        let row = db.client.query_one(sql, &[&b.incarnation().as_uuid()]).await.unwrap();
        assert_eq!(row.get::<_, Option<String>>("reason"), None);
        assert_eq!(row.get::<_, i64>("runs_taken_over"), 0);
        b.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// A supervisor stops its pod in order after its command has failed: for the score, that is no clean end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_stop_after_a_failed_command_counts_as_lost() {
    timed(async {
        let db = Db::new().await;
        for (pod, cause) in [("killed", Some("killed")), ("fine", None)] {
            session(&db.client, pod, 5.0, 5.0, Some("shutdown"), None).await;
            let sql = "UPDATE studio_pod_sessions SET cause = $2 WHERE pod_id = $1";
            db.client.execute(sql, &[&pod, &cause]).await.unwrap();
        }
        operator(&db).await.roll_up().await.unwrap();
        for (pod, reason) in [("killed", "lost"), ("fine", "shutdown")] {
            let row = reliability(&db.client, pod).await.unwrap();
            let reasons: serde_json::Value = row.get("disconnect_reasons");
            assert_eq!(reasons, serde_json::json!({reason: 1}), "{pod}");
        }
        let score = async |pod: &str| number(&reliability(&db.client, pod).await.unwrap(), "score");
        assert!(score("killed").await < score("fine").await);
    })
    .await;
}
