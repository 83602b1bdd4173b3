//! Roll-ups on a bad day: other labels, clocks that jump, hours that are too large, rows that somebody has locked.

use std::time::Duration;

use podlock::{Config, Operator};
use uuid::Uuid;

use super::plans::rendered;
use super::roll_ups::{days, hours, operator, sample, session};
use crate::patience::SOON;
use crate::support::{Db, eventually, sql, start, timed, trace};

const LABEL: &str = "SELECT score_by FROM studio_roll_ups WHERE what = 'reliability'";

/// A fleet that is half rolled out does not rewrite all scores with each roll-up: the label in force stays while it is used.
/// Then the other follows, also if the last use lies in a future that the server's clock has left again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_that_a_pod_uses_is_not_replaced_by_a_pod_with_another() {
    timed(async {
        let db = Db::new().await;
        let c = &db.client;
        session(c, "x1", 10.0, 4.0, Some("lost"), Some("n1")).await;
        // As if a pod of the other configuration were about, and stayed so: each write of the label's time is its own.
        let used = "UPDATE studio_roll_ups SET score_by = 'node', label_at = clock_timestamp(); \
                    CREATE TABLE other_uses (at timestamptz); INSERT INTO other_uses VALUES (clock_timestamp()); \
                    CREATE FUNCTION used() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                      NEW.label_at := clock_timestamp(); RETURN NEW; END $$; \
                    CREATE TRIGGER used BEFORE UPDATE ON studio_roll_ups FOR EACH ROW \
                      WHEN (NEW.what = 'reliability') EXECUTE FUNCTION used()";
        c.batch_execute(used).await.unwrap();
        let pod = start(db.config("half-rolled-out").with(|c| c.roll_up_interval = Duration::from_secs(2))).await;
        eventually(SOON, "the pod made the scores twice", || async {
            c.batch_execute("UPDATE studio_roll_ups SET claimed_at = claimed_at WHERE what = 'reliability'")
                .await
                .unwrap();
            let sql = "SELECT (SELECT count(*) FROM studio_pod_reliability WHERE pod_id = 'n1') + \
                       (SELECT count(*) FROM studio_roll_ups WHERE what = 'reliability' AND done_at IS NOT NULL)";
            if c.scalar::<i64>(sql, &[]).await == 2 { Ok(()) } else { Err("not yet".into()) }
        })
        .await;
        assert_eq!(c.scalar::<String>(LABEL, &[]).await, "node");
        let logged = || {
            let events = trace::events("half-rolled-out");
            events.iter().filter(|e| e.get("event").is_some_and(|e| e == "scores_by_another_label")).count()
        };
        assert_eq!(logged(), 1, "it is logged once");
        for last in ["now() - interval '1 hour'", "now() + interval '1 year'"] {
            let unused = format!(
                "DROP TRIGGER IF EXISTS used ON studio_roll_ups; \
                 UPDATE studio_roll_ups SET score_by = 'node', label_at = {last}"
            );
            c.batch_execute(&unused).await.unwrap();
            eventually(SOON, "the label of the pod is in force", || async {
                let label: String = c.scalar(LABEL, &[]).await;
                if label.is_empty() { Ok(()) } else { Err(label) }
            })
            .await;
        }
        pod.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// An hour that does not fit into the statement time-out is made in parts, and does not fail for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_that_is_too_large_for_the_time_out_is_made_all_the_same() {
    timed(async {
        // With one connection it is divided, with two it gets more time.
        for pool in [1, 2] {
            let db = Db::new().await;
            let c = &db.client;
            days(c, 2).await;
            for pod in 0..40 {
                sample(c, &format!("p{pod}"), 1.5, "nominal", Some(0.5)).await;
            }
            let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                          PERFORM pg_sleep(0.03); RETURN NEW; END $$; \
                        CREATE TRIGGER slow BEFORE INSERT ON studio_pod_heartbeats_hourly \
                          FOR EACH ROW EXECUTE FUNCTION slow()";
            c.batch_execute(slow).await.unwrap();
            let config = Config::new(&db.pod_url).with(|c| {
                c.pool_size = pool;
                c.watch_slice = Some(Duration::from_millis(100));
                c.statement_timeout = Some(Duration::from_millis(600));
            });
            let rolled = Operator::connect(&config).await.unwrap().roll_up().await.unwrap();
            assert_eq!(rolled.hours, 40, "pool of {pool}");
            let upto = "SELECT upto = date_trunc('hour', now(), 'UTC') FROM studio_roll_ups WHERE what = 'hourly'";
            assert!(c.scalar::<bool>(upto, &[]).await);
            for pod in ["p0", "p39"] {
                assert_eq!(hours(c, pod).await[&2].0, 1);
            }
        }
    })
    .await;
}

/// After a jump of the clock by more than two hours and back, the hours before the present one are made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hours_before_a_jump_back_of_the_clock_are_made() {
    timed(async {
        let db = Db::new().await;
        let c = &db.client;
        days(c, 2).await;
        let operator = operator(&db).await;
        sample(c, "a", 7.5, "nominal", None).await;
        operator.roll_up().await.unwrap();
        for back in [5.5, 4.5, 3.5] {
            sample(c, "a", back, "nominal", None).await;
        }
        c.batch_execute("UPDATE studio_roll_ups SET upto = upto + interval '10 h' WHERE what = 'hourly'")
            .await
            .unwrap();
        assert_eq!(operator.roll_up().await.unwrap().hours, 3);
        assert_eq!(hours(c, "a").await.keys().copied().collect::<Vec<_>>(), [4, 5, 6, 8]);
        // Without any row it begins as the first roll-up does.
        let forgot = "DELETE FROM studio_pod_heartbeats_hourly; \
                      UPDATE studio_roll_ups SET upto = upto + interval '10 h' WHERE what = 'hourly'";
        c.batch_execute(forgot).await.unwrap();
        assert_eq!(operator.roll_up().await.unwrap().hours, 4);
    })
    .await;
}

/// After a jump of the clock by more than a year, all hourly rows look old. They stay until two days have new rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hourly_rows_survive_a_clock_that_jumps_forward() {
    timed(async {
        let db = Db::new().await;
        let c = &db.client;
        let old = "INSERT INTO studio_pod_heartbeats_hourly (pod_id, hour, heartbeat_count, max_health) \
                   SELECT 'a', date_trunc('hour', now()) - interval '401 days' - n * interval '1 hour', 1, 'nominal' \
                   FROM generate_series(0, 99) n";
        c.batch_execute(old).await.unwrap();
        let operator = operator(&db).await;
        for (newer, gone) in [(None, 0), (Some(1), 0), (Some(50), 100)] {
            if let Some(newer) = newer {
                let sql = format!(
                    "INSERT INTO studio_pod_heartbeats_hourly (pod_id, hour, heartbeat_count, max_health) \
                     VALUES ('a', date_trunc('hour', now()) - interval '{newer} h', 1, 'nominal')"
                );
                c.batch_execute(&sql).await.unwrap();
            }
            assert_eq!(operator.roll_up().await.unwrap().old_hours, gone, "with a row of {newer:?} hours ago");
        }
    })
    .await;
}

/// A sign of life that is newer than the transaction of another's claim is no time in the future.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_began_before_anothers_sign_of_life_does_not_take_its_roll_up() {
    timed(async {
        let db = Db::new().await;
        let other = sql::connect(&db.pod_url).await;
        other.batch_execute("BEGIN; SELECT now()").await.unwrap();
        let at_it = "UPDATE studio_roll_ups SET token = gen_random_uuid(), claimed_at = clock_timestamp()";
        db.client.batch_execute(at_it).await.unwrap();
        let claim = rendered("claim_roll_up");
        let claim = async |token: Uuid| {
            let (label, by, every, unused) = (None::<&str>, None::<&str>, None::<f64>, None::<f64>);
            let rows =
                other.query(&claim, &[&"hourly", &token, &by, &label, &every, &60.0_f64, &unused]).await.unwrap();
            rows.len()
        };
        assert_eq!(claim(Uuid::from_u128(7)).await, 0, "another is at it");
        other.batch_execute("COMMIT").await.unwrap();
        // A year ahead, it is from a clock that has jumped.
        let jumped = "UPDATE studio_roll_ups SET claimed_at = now() + interval '1 year'";
        db.client.batch_execute(jumped).await.unwrap();
        assert_eq!(claim(Uuid::from_u128(7)).await, 1);
    })
    .await;
}

/// While another takes the roll-up over, its former maker deletes nothing, and does not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scores_are_not_deleted_while_another_takes_the_roll_up_over() {
    timed(async {
        let db = Db::new().await;
        let c = &db.client;
        let token = Uuid::from_u128(7);
        c.execute("UPDATE studio_roll_ups SET token = $1", &[&token]).await.unwrap();
        let score =
            "INSERT INTO studio_pod_reliability (pod_id, window_days, sessions_count, score) VALUES ('a', 14, 1, 0)";
        c.batch_execute(score).await.unwrap();
        let delete = rendered("delete_unscored");
        let pod = sql::connect(&db.pod_url).await;
        let delete = async || {
            let none: [&str; 0] = [];
            let row = pod.query_one(&delete, &[&token, &&none[..], &1_i32, &0_i32, &9_i64]).await.unwrap();
            (row.get::<_, bool>("is_mine"), row.get::<_, i64>("rows"))
        };
        c.batch_execute("BEGIN; SELECT FROM studio_roll_ups FOR UPDATE").await.unwrap();
        assert_eq!(delete().await, (false, 0));
        c.batch_execute("COMMIT").await.unwrap();
        assert_eq!(delete().await, (true, 1));
    })
    .await;
}
