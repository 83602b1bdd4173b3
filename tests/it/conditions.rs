//! What is said of a pod that is in the roster: its condition in words, and the wait before its burial as an event.

use std::time::Duration;

use podlock::operator::{Condition, PodRow};
use podlock::{Operator, Pod};
use serde_json::Value;

use crate::patience::SOON;
use crate::runs::stage::behind_proxy;
use crate::support::proxy::Flow;
use crate::support::{Db, eventually, lease, sql, start, timed};

async fn seen(operator: &Operator, pod: &str) -> Option<PodRow> {
    let pods = operator.pods(Default::default()).await.expect("the roster");
    pods.into_iter().find(|row| row.pod_id == pod)
}

/// Waits until the operator shows this condition.
async fn is_in(operator: &Operator, pod: &str, condition: Condition) -> PodRow {
    eventually(SOON, &format!("{pod} is {condition:?}"), || async {
        let row = seen(operator, pod).await;
        row.clone().filter(|row| row.condition == condition).ok_or_else(|| format!("{row:?}"))
    })
    .await
}

/// The waits that are in the log: about whom, told by whom, and the detail.
async fn waits(client: &sql::Client) -> Vec<(String, String, Value)> {
    let sql = "SELECT pod_id, by_pod, detail FROM studio_pod_events WHERE kind = 'held' ORDER BY pod_id, idx";
    client.query(sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// Waits until no session of these pods is left.
async fn sessions_are_gone(client: &sql::Client, pods: &[&str]) {
    eventually(SOON, "their sessions are gone", || async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                   AND split_part(application_name, '/', 2) = ANY($1)";
        let n: i64 = client.scalar(sql, &[&pods]).await;
        if n == 0 { Ok(()) } else { Err(format!("{n} sessions")) }
    })
    .await;
}

/// The view says in SQL what the rule says in Rust, for every combination of what can be seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_view_and_the_operator_say_the_same_of_every_combination() {
    timed(async {
        let db = Db::new().await;
        let pid: i32 = db.client.scalar("SELECT pg_backend_pid()", &[]).await;
        let insert = "WITH bits AS (SELECT n, n & 1 > 0 AS alive, n & 2 > 0 AS witness, n & 4 > 0 AS draining, \
                          n & 8 > 0 AS requested, n & 16 > 0 AS evicted, n & 32 > 0 AS lags, \
                          n & 128 > 0 AS cordoned FROM generate_series(0, 255) n) \
                      INSERT INTO studio_pods (pod_id, state, version, event_index, beat_at, drain_requested, \
                      incarnation, \
                          lock_key, witness_key, liveness_pid, liveness_started, control_pid, evicted, beat_ms, \
                          cordoned_by) \
                      SELECT 'p' || n, CASE WHEN draining THEN 'draining' ELSE 'active' END, '', 0, \
                          now() - CASE WHEN lags THEN interval '1 hour' ELSE interval '0' END, \
                          CASE WHEN requested THEN 'x' END, gen_random_uuid(), studio_lock_key('p' || n), \
                          studio_witness_key('p' || n), CASE WHEN alive THEN $1 ELSE 0 END, now(), \
                          CASE WHEN witness THEN $1 ELSE 0 END, CASE WHEN evicted THEN 'evicted' END, 60000, \
                          CASE WHEN cordoned THEN 'x' END FROM bits";
        assert_eq!(db.client.execute(insert, &[&pid]).await.unwrap(), 256);
        let take = "SELECT pg_advisory_lock(lock_key), pg_advisory_lock(witness_key) FROM studio_pods";
        db.client.query(take, &[]).await.unwrap();
        let wait = "SELECT studio_append_event('held', pod_id, incarnation, 'x', '{\"reason\": \"many_lost\", \
                        \"wait_ms\": 60000, \"session\": 1}') FROM studio_pods WHERE substr(pod_id, 2)::int & 64 > 0";
        db.client.query(wait, &[]).await.unwrap();
        let rows = db.client.query("SELECT pod_id, condition, wait_reason FROM studio_pod_status", &[]).await.unwrap();
        let mut in_sql: Vec<(String, String, Option<String>)> =
            rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
        let operator = Operator::connect(&db.config("x")).await.unwrap();
        let pods = operator.pods(Default::default()).await.unwrap();
        let mut in_rust: Vec<_> =
            pods.into_iter().map(|pod| (pod.pod_id, pod.condition.as_str().to_owned(), pod.wait_reason)).collect();
        in_sql.sort();
        in_rust.sort();
        assert_eq!(in_sql, in_rust);
        let words: std::collections::BTreeSet<_> = in_sql.iter().map(|(_, condition, _)| condition.as_str()).collect();
        assert_eq!(words.len(), 11, "each of them is met: {words:?}");
    })
    .await;
}

/// Three of five at once: their burial waits, the log says so once for each although two observe it, and so do the
/// lists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_lost_at_once_the_wait_is_an_event_once_and_their_condition_says_how_long() {
    timed(async {
        let mut db = Db::new().await;
        let [a, b, c, d, e] = db.settled_pods().await;
        let operator = Operator::connect(&db.config("x")).await.unwrap();
        is_in(&operator, "a", Condition::Fine).await;
        let eyes = sql::connect(&db.url).await;
        // Nobody can look at the roster until all three are gone: the first look sees three losses.
        let blind = db.client.transaction().await.unwrap();
        blind.batch_execute("LOCK TABLE studio_pods IN ACCESS EXCLUSIVE MODE").await.unwrap();
        drop((a, b, c));
        sessions_are_gone(&eyes, &["a", "b", "c"]).await;
        blind.rollback().await.unwrap();
        let waiting = eventually(SOON, "one of them waits", || async {
            let pods = operator.pods(Default::default()).await.expect("the roster");
            let waiting = pods.iter().find(|row| row.condition == Condition::DeadWaiting);
            waiting.cloned().ok_or_else(|| format!("{pods:?}"))
        })
        .await;
        let words = waiting.condition_in_words();
        assert!(words.starts_with("dead, waiting: many lost, ") && words.ends_with(" s left"), "{words}");
        assert!(waiting.wait_left_ms.is_some_and(|ms| ms > 0 && ms <= lease().as_millis() as i64), "{waiting:?}");
        is_in(&operator, "d", Condition::Fine).await;
        eyes.roster_is(&["d", "e"], lease() * 2 + SOON).await;
        let told = waits(&eyes).await;
        // Of two observers that look in the same moment, each finds free what the other does not just probe. So one of
        // the three may be seen alone and be buried at once; the others are many all the same.
        let mut about: Vec<_> = told.iter().map(|(pod, ..)| pod.as_str()).collect();
        assert!(about.len() >= 2, "{told:?}");
        about.dedup();
        assert_eq!(about.len(), told.len(), "once for each, although two observe them: {told:?}");
        for (pod, by, detail) in &told {
            assert!(["d", "e"].contains(&by.as_str()), "{told:?}");
            assert_eq!(detail["reason"], "many_lost", "{told:?}");
            assert!(detail["in_sight"].as_u64() >= Some(2) && detail["wait_ms"].as_u64() > Some(0), "{detail}");
            let sql =
                "SELECT detail->'evidence'->'many_lost' FROM studio_pod_events WHERE kind = 'buried' AND pod_id = $1";
            assert_eq!(eyes.scalar::<Value>(sql, &[pod]).await, Value::Bool(true));
        }
        eyes.assert_fold_is_roster().await;
        for pod in [d, e] {
            pod.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// A connection that breaks and is back at once leaves no event of a wait; one that stays away does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_is_reconnecting_and_leaves_an_event_only_where_it_lasts() {
    timed(async {
        let db = Db::new().await;
        let (proxy, through) = behind_proxy(&db, "a").await;
        // It goes on without its liveness session for longer than the test takes.
        let a = start(through).await;
        let [b, c]: [Pod; 2] = [db.pod("b").await, db.pod("c").await];
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        let operator = Operator::connect(&db.config("x")).await.unwrap();
        db.client.armed("a", SOON).await;
        for _ in 0..3 {
            let session: i64 = db.client.scalar("SELECT session FROM studio_pods WHERE pod_id = 'a'", &[]).await;
            assert_eq!(db.client.terminate("a", "liveness").await, 1);
            eventually(SOON, "it is back", || async {
                let now: i64 = db.client.scalar("SELECT session FROM studio_pods WHERE pod_id = 'a'", &[]).await;
                if now > session { Ok(()) } else { Err(format!("session {now}")) }
            })
            .await;
        }
        // A loaded machine takes its time to reconnect: whatever took less than a lease / 10 is not told.
        let told = "SELECT count(*) FROM studio_pod_events h JOIN studio_pod_events r ON r.incarnation = h.incarnation \
                      AND r.kind = 'returned' AND (r.detail->>'session')::int = (h.detail->>'session')::int + 1 \
                    WHERE h.kind = 'held' AND (r.detail->>'away_ms')::int < 300";
        assert_eq!(db.client.scalar::<i64>(told, &[]).await, 0, "nothing came of it: {:?}", waits(&db.client).await);
        let before = waits(&db.client).await.len();
        proxy.all(&["liveness"], Flow::Cut);
        let broken = eventually(SOON, "the wait is told", || async {
            let row = seen(&operator, "a").await;
            row.clone().filter(|row| row.wait_reason.is_some()).ok_or_else(|| format!("{row:?}"))
        })
        .await;
        assert_eq!(broken.condition, Condition::Reconnecting, "{broken:?}");
        assert!(broken.condition_in_words().starts_with("reconnecting: its connection broke, "), "{broken:?}");
        proxy.all(&["liveness"], Flow::Pass);
        is_in(&operator, "a", Condition::Fine).await;
        let told = waits(&db.client).await;
        assert_eq!(told.len(), before + 1, "once, although two observe it: {told:?}");
        assert!(told.iter().all(|(_, _, detail)| detail["reason"] == "connection_broken"), "{told:?}");
        for pod in [a, b, c] {
            pod.shutdown(SOON).await.unwrap();
        }
        db.client.assert_fold_is_roster().await;
    })
    .await;
}

/// The README: a pod may bury once it has been up for `settle`. Until then the log and the lists say what is waited
/// for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_fresh_pods_one_that_dies_is_dead_and_waits_for_the_other_to_settle() {
    timed(async {
        let db = Db::new().await;
        let [a, b]: [Pod; 2] = [db.pod("a").await, db.pod("b").await];
        db.client.armed("a", SOON).await;
        db.client.armed("b", SOON).await;
        let operator = Operator::connect(&db.config("x")).await.unwrap();
        drop(a);
        let waiting = is_in(&operator, "a", Condition::DeadWaiting).await;
        assert_eq!(waiting.wait_reason.as_deref(), Some("unsettled"));
        assert!(
            waiting.condition_in_words().starts_with("dead, waiting: no pod has been up for settle, "),
            "{waiting:?}"
        );
        db.client.roster_is(&["b"], lease() * 2 + SOON).await;
        let told = waits(&db.client).await;
        assert_eq!(told.iter().map(|(pod, by, _)| (pod.as_str(), by.as_str())).collect::<Vec<_>>(), [("a", "b")]);
        b.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// The event `held` says how long a wait takes at most. When the wait of an unsettled pod ends, its burial follows, and
/// does not wait for the sweep after that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_for_settle_ends_when_the_log_says_so_and_not_with_the_next_sweep() {
    timed(async {
        let db = Db::new().await;
        let (settle, sweep) = (lease() * 2, lease().mul_f64(0.85));
        let config = |name: &str| {
            db.config(name).with(|c| {
                c.settle = Some(settle);
                c.sweep_interval = Some(sweep);
            })
        };
        let a = start(config("a")).await;
        let b = start(config("b")).await;
        let settles = tokio::time::Instant::now() + settle;
        db.client.armed("a", SOON).await;
        db.client.armed("b", SOON).await;
        // For 3 s after the report of a loss a pod probes often. The wait goes on after that, for less than a sweep
        // interval.
        tokio::time::sleep_until(settles - Duration::from_millis(3100) - lease().mul_f64(0.2)).await;
        drop(a);
        db.client.roster_is(&["b"], lease() * 2 + SOON).await;
        let sql = "SELECT held.detail->>'reason', buried.detail->>'trigger', (held.detail->>'wait_ms')::bigint, \
                       (extract(epoch FROM buried.at - held.at) * 1000)::bigint \
                     FROM studio_pod_events held JOIN studio_pod_events buried USING (incarnation) \
                    WHERE held.kind = 'held' AND buried.kind = 'buried'";
        let row = db.client.query_one(sql, &[]).await.expect("one wait was told, and its end");
        let (reason, trigger): (String, String) = (row.get(0), row.get(1));
        let (wait_ms, took_ms): (i64, i64) = (row.get(2), row.get(3));
        assert_eq!((reason.as_str(), trigger.as_str()), ("unsettled", "sweep"));
        let late_ms_max = i64::try_from(sweep.as_millis()).unwrap() / 2;
        assert!(took_ms >= wait_ms - 50, "it was buried too early: after {took_ms} of {wait_ms} ms");
        assert!(took_ms < wait_ms + late_ms_max, "buried after {took_ms} ms instead of {wait_ms} ms");
        b.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// L12: whoever holds the log keeps no wait from ending, and is not waited for to tell of one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_telling_of_a_wait_waits_for_nobody_and_tells_at_most_sixteen_at_a_time() {
    timed(async {
        let mut db = Db::new().await;
        let ghosts = "INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, witness_key, \
                          liveness_pid, liveness_started) SELECT 'g' || n, '', 0, gen_random_uuid(), n, -n, 0, now() \
                          FROM generate_series(1, 40) n";
        db.client.execute(ghosts, &[]).await.unwrap();
        let eyes = sql::connect(&db.url).await;
        let note = "SELECT studio_note_waits((SELECT jsonb_agg(jsonb_build_object('incarnation', incarnation, \
                        'session', 1, \
                        'reason', 'many_lost', 'wait_ms', 1000, 'in_sight', 40, 'others', 40)) FROM studio_pods), 'x')";
        let log = db.client.transaction().await.unwrap();
        log.execute("LOCK TABLE studio_log_order IN EXCLUSIVE MODE", &[]).await.unwrap();
        let began = std::time::Instant::now();
        assert_eq!(eyes.scalar::<Option<i32>>(note, &[]).await, None, "another has the log");
        assert!(began.elapsed() < Duration::from_secs(5), "it waited: {:?}", began.elapsed());
        log.rollback().await.unwrap();
        let mut told = Vec::new();
        for _ in 0..4 {
            told.push(eyes.scalar::<Option<i32>>(note, &[]).await);
        }
        assert_eq!(told, [Some(16), Some(16), Some(8), Some(0)], "each once, and progress behind those that were told");
        assert_eq!(eyes.scalar::<i64>("SELECT count(*) FROM studio_pod_events WHERE kind = 'held'", &[]).await, 40);
    })
    .await;
}
