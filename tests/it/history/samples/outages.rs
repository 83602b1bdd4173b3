//! A database that is away, slow, or whose answers are lost: samples wait, are stored once, and cost no run.

use std::time::Duration;

use podlock::NewRun;
use podlock::throwaway::Server;
use serde_json::json;

use super::{all_are_stored_once, often, pod, stored, stores};
use crate::patience::SOON;
use crate::support::faults::{OwnServer, no_lock_is_left, reconnected};
use crate::support::proxy::{Flow, Proxy};
use crate::support::{Db, eventually, server, sql, start, timed};

/// Waits until a write of samples waits for the row that says how far its incarnation has written.
async fn waits_for_its_row(db: &Db) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
               AND wait_event_type = 'Lock' AND query LIKE '%studio_sample_writers%'";
    eventually(SOON, "the pod's write waits for its row", || async {
        if db.client.scalar::<i64>(sql, &[]).await > 0 { Ok(()) } else { Err("it does not wait".to_owned()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_table_is_locked_samples_wait_runs_go_on_and_afterwards_all_are_stored_once() {
    timed(async {
        let db = Db::new().await;
        let pod = pod(&db, "a").await;
        stores(&db.client, "a", 1).await;
        let holder = sql::connect(&db.url).await;
        holder.batch_execute("BEGIN; LOCK TABLE studio_pod_heartbeats IN ACCESS EXCLUSIVE MODE").await.unwrap();
        eventually(SOON, "two writes fail", || async {
            let counts = pod.samples();
            if counts.flushes_failed >= 2 && counts.waiting > 10 { Ok(()) } else { Err(format!("{counts:?}")) }
        })
        .await;
        // "And no run."
        let steps = NewRun::new("steps").input(json!({"steps": 20, "pause_ms": 10}));
        let run = pod.start(steps).await.unwrap().run_id;
        db.client.run_in_state(run, "succeeded", SOON).await;
        assert_eq!(pod.status().phase, podlock::Phase::Active);
        holder.batch_execute("ROLLBACK").await.unwrap();
        eventually(SOON, "all are written", || async {
            let counts = pod.samples();
            if counts.waiting < 10 && counts.written > 10 { Ok(()) } else { Err(format!("{counts:?}")) }
        })
        .await;
        all_are_stored_once(&db, pod).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_away_samples_wait_and_after_its_return_all_are_stored_once() {
    timed(async {
        let own = OwnServer::start(&[]).await;
        let mut db = Db::on(&own).await;
        let pod = start(often(db.config("a")).lease(Duration::from_secs(20))).await;
        stores(&db.client, "a", 5).await;
        own.suffers(Server::stop).await;
        let before = pod.samples().taken;
        eventually(SOON, "it samples itself all the same", || async {
            let counts = pod.samples();
            if counts.taken >= before + 20 { Ok(()) } else { Err(format!("{counts:?}")) }
        })
        .await;
        own.suffers(Server::start_again).await;
        db.client = reconnected(&db.url).await.0;
        eventually(SOON, "the pod is back, and has written what waited", || async {
            let (counts, (rows, ..)) = (pod.samples(), stored(&db.client, "a").await);
            let before = i64::try_from(before).unwrap();
            if rows >= before + 20 { Ok(()) } else { Err(format!("{rows}, {counts:?}, {:?}", pod.status())) }
        })
        .await;
        let detached = "SELECT count(*) FROM studio_pod_heartbeats WHERE status = 'detached'";
        assert!(db.client.scalar::<i64>(detached, &[]).await > 0, "the history shows the outage");
        all_are_stored_once(&db, pod).await;
    })
    .await;
}

/// "A flush whose reply was lost is sent again and must not store twice."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_is_sent_again_and_stores_nothing_twice() {
    timed(async {
        let db = Db::new().await;
        let proxy = Proxy::before(server().port()).await;
        let config = often(db.config("a")).with(|c| c.database_url = proxy.url(&db.pod_url, server().port()).into());
        let pod = start(config).await;
        stores(&db.client, "a", 5).await;
        // The next write waits for its row. Then it may go on, and its answer does not arrive. New connections work.
        let gate = sql::connect(&db.url).await;
        gate.batch_execute("BEGIN; SELECT FROM studio_sample_writers FOR UPDATE").await.unwrap();
        waits_for_its_row(&db).await;
        let known = pod.samples().written;
        assert!(proxy.present(&["pool"], Flow::Mute) > 0);
        gate.batch_execute("ROLLBACK").await.unwrap();
        eventually(SOON, "a write is stored that the pod does not know of", || async {
            let (counts, (rows, ..)) = (pod.samples(), stored(&db.client, "a").await);
            assert_eq!((counts.written, counts.flushes_failed), (known, 0), "it cannot know");
            if rows > i64::try_from(known).unwrap() { Ok(()) } else { Err(format!("{rows}, {counts:?}")) }
        })
        .await;
        eventually(SOON, "the pod has given that write up, and written again", || async {
            let counts = pod.samples();
            let is_done = counts.flushes_failed >= 1 && counts.written >= counts.taken - 30;
            if is_done { Ok(()) } else { Err(format!("{counts:?}")) }
        })
        .await;
        all_are_stored_once(&db, pod).await;
    })
    .await;
}

/// The first attempt is still at work when the second comes: the second waits for it, and stores nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_attempt_waits_for_a_first_one_that_still_runs() {
    timed(async {
        let db = Db::new().await;
        let pod = pod(&db, "a").await;
        stores(&db.client, "a", 1).await;
        let own = pod.incarnation().as_uuid();
        let mut first = sql::connect(&db.url).await;
        let txn = first.transaction().await.unwrap();
        // As the library's statement does: the row, then the samples. It goes on to 50 numbers that the pod writes too.
        let mark = "UPDATE studio_sample_writers SET before = number, number = number + 50 WHERE incarnation = $1 \
                    RETURNING before";
        let before: i64 = txn.query_one(mark, &[&own]).await.unwrap().get(0);
        let store = "INSERT INTO studio_pod_heartbeats (pod_id, incarnation, number, sampled_at, status, health, running_runs) \
                     SELECT 'a', $1, $2::int8 + n, now(), 'active', 'nominal', 0 FROM generate_series(1, 50) n";
        txn.execute(store, &[&own, &before]).await.unwrap();
        waits_for_its_row(&db).await;
        txn.commit().await.unwrap();
        stores(&db.client, "a", before + 60).await;
        all_are_stored_once(&db, pod).await;
    })
    .await;
}

/// "On shutdown it drains, and never delays the release of the locks by more than a second."
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_whose_samples_cannot_be_written_ends_all_the_same_and_counts_them() {
    timed(async {
        let db = Db::new().await;
        let pod = pod(&db, "a").await;
        stores(&db.client, "a", 1).await;
        let holder = sql::connect(&db.url).await;
        holder.batch_execute("BEGIN; LOCK TABLE studio_pod_heartbeats IN ACCESS EXCLUSIVE MODE").await.unwrap();
        let handle = pod.clone();
        handle.shutdown(Duration::from_secs(5)).await.unwrap();
        let counts = pod.samples();
        assert!(counts.dropped > 0 && counts.dropped + counts.written >= counts.taken, "{counts:?}");
        no_lock_is_left(&db.client).await;
    })
    .await;
}

/// A sample that the server refuses costs itself. Here a trigger of the service's own refuses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_that_the_server_refuses_is_dropped_and_the_others_are_stored() {
    timed(async {
        let db = Db::new().await;
        let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                          IF NEW.number = 7 THEN RAISE 'not 7' USING ERRCODE = '22023'; END IF; RETURN NEW; END $$; \
                      CREATE TRIGGER refuse BEFORE INSERT ON studio_pod_heartbeats FOR EACH ROW EXECUTE FUNCTION refuse()";
        db.client.batch_execute(refuse).await.unwrap();
        let pod = pod(&db, "a").await;
        stores(&db.client, "a", 30).await;
        let handle = pod.clone();
        handle.shutdown(Duration::from_secs(5)).await.unwrap();
        let counts = pod.samples();
        let taken = i64::try_from(counts.taken).unwrap();
        assert_eq!(counts.dropped, 1, "{counts:?}");
        assert_eq!(stored(&db.client, "a").await, (taken - 1, taken - 1, taken), "{counts:?}");
    })
    .await;
}
