//! Rosters with many dead rows: looks and burials take a bounded number of locks, and make progress whatever else
//! fails.

use std::time::Duration;

use podlock::Pod;

use crate::patience::SOON;
use crate::support::faults::OwnServer;
use crate::support::{Db, eventually, lease, start, trace, within};

/// Rows of pods that are dead, as short-lived `hold`s under new names leave them.
async fn dead_rows(db: &Db, n: i32) {
    let sql = "WITH dead AS ( \
          INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, witness_key, liveness_pid, \
          liveness_started) \
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
    tokio::time::sleep(lease() + Duration::from_millis(200)).await;
    dead_rows(&db, dead).await;
    (db, pods)
}

/// Kills one of two pods while the dead are in sight: it is buried long before them, and then all of them are.
///
/// Where looks are `short`, the death does not wait because many are lost. Losses of two looks that take long count
/// together, so that a death next to thousands of rows that came just now may wait.
async fn one_dies_among(server: &OwnServer, names: [&str; 2], dead: i32, patience: Duration, short: bool) {
    let (db, [survivor, dying]) = among_the_dead(server, names, dead).await;
    let seen = usize::try_from(dead).unwrap();
    eventually(patience, "the survivor has seen that many are dead", || async {
        let held = trace::count("held", names[0]);
        if held >= seen { Ok(()) } else { Err(format!("{held} of {seen}")) }
    })
    .await;
    // Past the window in which losses count together.
    tokio::time::sleep(lease() / 10).await;
    let incarnation = dying.incarnation();
    drop(dying);
    eventually(patience, "the pod that dies among them is buried", || async {
        db.client.session_end(incarnation).await.ok_or("it is not".to_owned())
    })
    .await;
    let sql = "SELECT (detail->'evidence'->>'in_sight_ms')::int8 FROM studio_pod_events WHERE kind = 'buried' \
               AND pod_id = $1";
    let in_sight: i64 = db.client.scalar(sql, &[&names[1]]).await;
    assert!(!short || in_sight < 1000, "it was held for {in_sight} ms, as one of many");
    db.client.roster_is(&[names[0]], patience).await;
    let buried: i64 = db.client.scalar("SELECT count(*) FROM studio_pod_events WHERE kind = 'buried'", &[]).await;
    assert_eq!(buried, i64::from(dead) + 1, "each once");
    db.client.assert_fold_is_roster().await;
    survivor.shutdown(SOON).await.unwrap();
}

/// At this size each look used to fail with 53200, and no pod was buried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_600_dead_rows_on_a_small_lock_table_stop_no_burial_and_vanish() {
    within(Duration::from_secs(180), async {
        let server = OwnServer::start(&[("max_locks_per_transaction", "10"), ("max_connections", "30")]).await;
        one_dies_among(&server, ["small-a", "small-b"], 600, Duration::from_secs(60), true).await;
    })
    .await;
}

/// A quarter of the server's default lock table, and more dead rows than it has room for: at the defaults it is 8,200
/// of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_2200_dead_rows_on_a_larger_lock_table_stop_no_burial_and_vanish() {
    within(Duration::from_secs(400), async {
        let server = OwnServer::start(&[("max_locks_per_transaction", "16"), ("max_connections", "100")]).await;
        one_dies_among(&server, ["large-a", "large-b"], 2200, Duration::from_secs(180), false).await;
    })
    .await;
}

/// The smallest lock table that a server has, and many times more dead rows than it has room for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: cargo test --all-features --test it -- --ignored l12_20000"]
async fn l12_20000_dead_rows_on_the_smallest_lock_table_stop_no_burial_and_vanish() {
    within(Duration::from_secs(1200), async {
        let server = OwnServer::start(&[("max_locks_per_transaction", "10"), ("max_connections", "30")]).await;
        one_dies_among(&server, ["huge-a", "huge-b"], 20_000, Duration::from_secs(900), false).await;
    })
    .await;
}

/// L10, L12: somebody else fills the lock table but for a little. Looks and burials take portions that fit into what is
/// left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_while_others_fill_the_lock_table_looks_and_burials_take_what_is_left() {
    within(Duration::from_secs(180), async {
        let server = OwnServer::start(&[("max_locks_per_transaction", "10"), ("max_connections", "30")]).await;
        let (db, [a, b]) = among_the_dead(&server, ["full-a", "full-b"], 300).await;
        // All that there is, and less than one portion given back.
        let most = "DO $$ DECLARE n integer := 0; BEGIN LOOP BEGIN PERFORM pg_advisory_lock(7, n + 1); n := n + 1; \
                    EXCEPTION WHEN out_of_memory THEN EXIT; END; END LOOP; \
                    FOR i IN n - 59 .. n LOOP PERFORM pg_advisory_unlock(7, i); END LOOP; END $$";
        db.client.batch_execute(most).await.unwrap();
        let sql =
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND pid = pg_backend_pid()";
        let filled: i64 = db.client.scalar(sql, &[]).await;
        assert!(filled > 100, "{filled} locks");
        db.client.roster_is(&["full-a", "full-b"], Duration::from_secs(90)).await;
        db.client.assert_fold_is_roster().await;
        drop((a, b));
    })
    .await;
}

/// L12: a row that cannot be deleted is passed over, and so is one that somebody holds, or whose row in the history
/// somebody holds. All others are buried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_row_that_cannot_be_buried_and_one_that_is_held_hold_up_no_other() {
    within(Duration::from_secs(180), async {
        for dead in [20, 200] {
            let mut db = Db::new().await;
            let bad = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ \
                       BEGIN RAISE 'not this one'; END $$; \
                       CREATE TRIGGER refuse BEFORE DELETE ON studio_pods FOR EACH ROW WHEN (old.pod_id = 'dead-7') \
                       EXECUTE FUNCTION refuse()";
            db.client.batch_execute(bad).await.unwrap();
            let a = start(db.config(&format!("stuck-{dead}"))).await;
            tokio::time::sleep(lease() + Duration::from_millis(200)).await;
            dead_rows(&db, dead).await;
            let eyes = crate::support::sql::connect(&db.url).await;
            let held = db.client.transaction().await.unwrap();
            held.execute("SELECT FROM studio_pods WHERE pod_id = 'dead-9' FOR UPDATE", &[]).await.unwrap();
            held.execute("SELECT FROM studio_pod_sessions WHERE pod_id = 'dead-11' FOR UPDATE", &[]).await.unwrap();
            let name = a.pod_id().to_string();
            eyes.roster_is(&["dead-11", "dead-7", "dead-9", &name], Duration::from_secs(60)).await;
            held.rollback().await.unwrap();
            eyes.roster_is(&["dead-7", &name], SOON).await;
            let named = trace::events("dead-7").iter().any(|e| e.get("by") == Some(&name) && e["level"] == "WARN");
            assert!(named, "the log names the one that could not be buried");
            let waited =
                trace::events("dead-11").iter().any(|e| e["event"] == "burial_failed" && e.get("by") == Some(&name));
            assert!(!waited, "a burial waited for a row that somebody held, instead of passing it over");
            eyes.assert_fold_is_roster().await;
            a.shutdown(SOON).await.unwrap();
        }
    })
    .await;
}

/// L12: the first rows in the order of the keys are dead and cannot be buried. They are more than one pass tries. The
/// next pass begins after the rows that this pass tried. So all other dead rows are buried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_hundred_rows_that_cannot_be_buried_hold_up_none_behind_them() {
    within(Duration::from_secs(300), async {
        let db = Db::new().await;
        let bad = "CREATE TABLE refused AS SELECT 'dead-' || n AS pod_id FROM generate_series(1, 200) n \
                   ORDER BY studio_lock_key('dead-' || n) LIMIT 100; \
                   CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN \
                     IF EXISTS (SELECT FROM public.refused r \
                     WHERE r.pod_id = old.pod_id) THEN RAISE 'not this one'; END IF; \
                     RETURN old; END $$; \
                   CREATE TRIGGER refuse BEFORE DELETE ON studio_pods FOR EACH ROW EXECUTE FUNCTION refuse()";
        db.client.batch_execute(bad).await.unwrap();
        let a = start(db.config("behind-many")).await;
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        dead_rows(&db, 200).await;
        let refused = "SELECT array_agg(pod_id ORDER BY pod_id COLLATE \"C\") FROM (SELECT pod_id FROM refused \
                       UNION ALL SELECT 'behind-many') r";
        let left: Vec<String> = db.client.scalar(refused, &[]).await;
        let left: Vec<&str> = left.iter().map(String::as_str).collect();
        db.client.roster_is(&left, Duration::from_secs(120)).await;
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}

/// L12: a look goes on behind a row whose name no pod can have, on a roster that is longer than a portion.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_row_with_a_name_that_no_pod_can_have_ends_no_look() {
    within(Duration::from_secs(180), async {
        let db = Db::new().await;
        let a = start(db.config("beside-a-bad-name")).await;
        tokio::time::sleep(lease() + Duration::from_millis(200)).await;
        // With the lowest keys of all: their portion comes first.
        let bad = "DO $$ DECLARE c text; BEGIN FOR c IN SELECT conname FROM pg_constraint \
                     WHERE conrelid = 'studio_pods'::regclass AND contype = 'c' LOOP \
                     EXECUTE format('ALTER TABLE studio_pods DROP CONSTRAINT %I', c); END LOOP; END $$; \
                   INSERT INTO studio_pods (pod_id, version, event_index, incarnation, lock_key, witness_key, \
                   liveness_pid, liveness_started) \
                   SELECT E'bad\\n' || n, '', 0, gen_random_uuid(), -9223372036854775808 + 2 * n, -9223372036854775807 \
                   + 2 * n, 0, now() FROM generate_series(0, 2) n";
        db.client.batch_execute(bad).await.unwrap();
        dead_rows(&db, 200).await;
        let roster = ["bad\n0", "bad\n1", "bad\n2", "beside-a-bad-name"];
        db.client.roster_is(&roster, Duration::from_secs(60)).await;
        a.shutdown(SOON).await.unwrap();
    })
    .await;
}
