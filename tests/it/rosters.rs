//! Rosters with many dead rows: looks and burials take a bounded number of locks, and make progress whatever else fails.

use std::time::{Duration, Instant};

use podlock::Pod;

use crate::support::faults::OwnServer;
use crate::support::{Db, LEASE, eventually, start, trace, within};

const SOON: Duration = Duration::from_secs(15);

/// Rows of pods that are dead, as short-lived `hold`s under new names leave them.
async fn dead_rows(db: &Db, n: i32) {
    let sql = "WITH dead AS ( \
          INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, witness_key, liveness_pid, liveness_started) \
          SELECT d, '', 0, gen_random_uuid(), studio_lock_key(d), studio_witness_key(d), 0, now() - interval '1 day' \
            FROM (SELECT 'dead-' || n AS d FROM generate_series(1, $1) n) AS dead RETURNING pod_id, incarnation) \
        , began AS (INSERT INTO studio_pod_sessions (incarnation, pod_id) SELECT incarnation, pod_id FROM dead) \
        SELECT studio_append_event('joined', pod_id, incarnation, pod_id, '{}') FROM dead";
    db.client.execute(sql, &[&n]).await.unwrap();
}

/// Two pods that may bury, on a server of their own with so many dead rows.
async fn among_the_dead(server: &OwnServer, names: [&str; 2], dead: i32) -> (Db, [Pod; 2]) {
    let db = Db::on(server).await;
    let pods = [start(db.config(names[0])).await, start(db.config(names[1])).await];
    tokio::time::sleep(LEASE + Duration::from_millis(200)).await;
    dead_rows(&db, dead).await;
    (db, pods)
}

async fn holds(pod: &str) -> usize {
    trace::events(pod).iter().filter(|e| e.get("event").map(String::as_str) == Some("held")).count()
}

/// Kills one of two pods while the dead are in sight: it is buried long before them, and then all of them are.
async fn one_dies_among(server: &OwnServer, names: [&str; 2], dead: i32, patience: Duration) {
    let (db, [survivor, dying]) = among_the_dead(server, names, dead).await;
    let seen = usize::try_from(dead).unwrap();
    eventually(patience, "the survivor has seen that many are dead", || async {
        let held = holds(names[0]).await;
        if held >= seen { Ok(()) } else { Err(format!("{held} of {seen}")) }
    })
    .await;
    let incarnation = dying.incarnation();
    drop(dying);
    let died = Instant::now();
    eventually(patience, "the pod that dies among them is buried", || async {
        db.client.session_end(incarnation).await.ok_or("it is not".to_owned())
    })
    .await;
    let took = died.elapsed();
    let sql = "SELECT (detail->'evidence'->>'in_sight_ms')::int8 FROM studio_pod_events WHERE kind = 'buried' AND pod_id = $1";
    let in_sight: i64 = db.client.scalar(sql, &[&names[1]]).await;
    assert!(in_sight < 1000, "it was held for {in_sight} ms, as one of many; {took:?} from its death to its burial");
    db.client.roster_is(&[names[0]], patience).await;
    let buried: i64 = db.client.scalar("SELECT count(*) FROM studio_pod_events WHERE kind = 'buried'", &[]).await;
    assert_eq!(buried, i64::from(dead) + 1, "each once");
    db.client.assert_fold_is_roster().await;
    let limit = survivor.settings().worst_case().process_killed + SOON;
    assert!(took < limit, "{took:?}");
    survivor.shutdown(SOON).await.unwrap();
}

/// The statement of the issue: at this size every look failed with 53200, and nobody was ever buried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_600_dead_rows_on_a_small_lock_table_stop_no_burial_and_vanish() {
    within(Duration::from_secs(180), async {
        let server = OwnServer::start(&[("max_locks_per_transaction", "10"), ("max_connections", "30")]).await;
        one_dies_among(&server, ["small-a", "small-b"], 600, Duration::from_secs(60)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_9000_dead_rows_on_a_server_with_its_defaults_stop_no_burial_and_vanish() {
    within(Duration::from_secs(400), async {
        let server = OwnServer::start(&[("max_locks_per_transaction", "64"), ("max_connections", "100")]).await;
        one_dies_among(&server, ["large-a", "large-b"], 9000, Duration::from_secs(180)).await;
    })
    .await;
}

/// L10, L12: somebody else fills the lock table. While nothing can be probed, nobody is buried; half of it free is enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l10_while_others_fill_the_lock_table_looks_take_what_is_left_and_conclude_nothing_from_the_rest() {
    within(Duration::from_secs(180), async {
        let server = OwnServer::start(&[("max_locks_per_transaction", "10"), ("max_connections", "30")]).await;
        let (mut db, [a, b]) = among_the_dead(&server, ["full-a", "full-b"], 600).await;
        let other = crate::support::sql::connect(&db.url).await;
        // All that it can get, until the table is full; an error of one statement keeps the locks of those before it.
        let fill = "DO $$ BEGIN FOR n IN 1..100000 LOOP PERFORM pg_advisory_lock(7, n); END LOOP; \
                    EXCEPTION WHEN out_of_memory THEN NULL; END $$";
        db.client.batch_execute(fill).await.unwrap();
        let blind =
            || trace::events("full-a").iter().any(|e| e.get("event").map(String::as_str) == Some("partly_blind"));
        let give_back_some = "SELECT pg_advisory_unlock(7, n) FROM generate_series(1, $1::int) n";
        let buried = "SELECT count(*) FROM studio_pod_events WHERE kind = 'buried'";
        let before: i64 = other.scalar(buried, &[]).await;
        eventually(SOON, "a look met the full table", || async {
            let seen = trace::events("full-a");
            if blind() || !seen.is_empty() && other.scalar::<i64>(buried, &[]).await == before {
                Ok(())
            } else {
                Err(format!("{seen:?}"))
            }
        })
        .await;
        let row = db.client.transaction().await.unwrap();
        row.query(give_back_some, &[&40]).await.unwrap();
        row.commit().await.unwrap();
        other.roster_is(&["full-a", "full-b"], Duration::from_secs(90)).await;
        other.assert_fold_is_roster().await;
        drop((a, b));
    })
    .await;
}

/// L12: a row that cannot be deleted, and one that somebody holds, are passed over. All others are buried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_row_that_cannot_be_buried_and_one_that_is_held_hold_up_no_other() {
    within(Duration::from_secs(180), async {
        for dead in [20, 200] {
            let mut db = Db::new().await;
            let bad = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$; \
                       CREATE TRIGGER refuse BEFORE DELETE ON studio_pods FOR EACH ROW WHEN (old.pod_id = 'dead-7') \
                       EXECUTE FUNCTION refuse()";
            db.client.batch_execute(bad).await.unwrap();
            let a = start(db.config(&format!("stuck-{dead}"))).await;
            tokio::time::sleep(LEASE + Duration::from_millis(200)).await;
            dead_rows(&db, dead).await;
            let eyes = crate::support::sql::connect(&db.url).await;
            let held = db.client.transaction().await.unwrap();
            held.execute("SELECT FROM studio_pods WHERE pod_id = 'dead-9' FOR UPDATE", &[]).await.unwrap();
            let name = a.pod_id().to_string();
            eyes.roster_is(&["dead-7", "dead-9", &name], Duration::from_secs(60)).await;
            held.rollback().await.unwrap();
            eyes.roster_is(&["dead-7", &name], SOON).await;
            let named = trace::events("dead-7").iter().any(|e| e.get("by") == Some(&name) && e["level"] == "WARN");
            assert!(named, "the log names the one that could not be buried");
            eyes.assert_fold_is_roster().await;
            a.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}
