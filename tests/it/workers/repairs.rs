//! Whatever is lost on the way is found by the next comparison.

use std::time::Duration;

use podlock::workers::{Health, WorkerEvent};
use podlock::{Config, Pod, WorkerId};

use super::{SOON, chooses_among, shows, worker};
use crate::support::{Db, eventually, timed, trace};

/// A pod that compares its copy with the store five times a second.
async fn pod(db: &Db, name: &str) -> Pod {
    start(db.config(name)).await
}

async fn start(config: Config) -> Pod {
    let config = config.with(|c| {
        c.worker_report_interval = Duration::from_millis(200);
        c.worker_monitor_interval = Duration::from_millis(400);
    });
    crate::support::start(config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missed_puts_and_missed_tombstones_are_repaired_without_a_notice() {
    timed(async {
        let db = Db::new().await;
        let (a, b) = (pod(&db, "a").await, pod(&db, "b").await);
        let id = a.workers().register(worker("http://10.0.0.1:8000")).unwrap();
        shows(&b, &[id]).await;
        // A row of pod a that no statement of the library wrote, so nobody is told.
        let copy = "INSERT INTO studio_workers (worker_id, url, owner_pod, owner_incarnation, health, reported_at, spec, liveness) \
                    SELECT gen_random_uuid(), 'http://10.9.9.9:1', owner_pod, owner_incarnation, health, reported_at, spec, liveness \
                    FROM studio_workers RETURNING worker_id";
        let added = WorkerId::from(db.client.scalar::<uuid::Uuid>(copy, &[]).await);
        // Its owner does not know the row, and removes it. Its tombstone is told.
        eventually(SOON, "the owner removes what it does not have", || async {
            let rows: i64 = db.client.scalar("SELECT count(*) FROM studio_workers", &[]).await;
            if rows == 1 { Ok(()) } else { Err(format!("{rows} rows, {added} among them")) }
        })
        .await;
        shows(&b, &[id]).await;
        // Removed by hand, without a notice and without a tombstone.
        db.client.batch_execute("BEGIN; DELETE FROM studio_workers; DELETE FROM studio_worker_tombstones; COMMIT").await.unwrap();
        eventually(SOON, "the owner has published it again", || async {
            let rows: i64 = db.client.scalar("SELECT count(*) FROM studio_workers", &[]).await;
            if rows == 1 { Ok(()) } else { Err(format!("{rows} rows")) }
        })
        .await;
        shows(&b, &[id]).await;
        shows(&a, &[id]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_notification_channel_dead_changes_arrive_all_the_same() {
    timed(async {
        let db = Db::new().await;
        let (a, b) = (pod(&db, "deaf-a").await, pod(&db, "deaf-b").await);
        let id = a.workers().register(worker("http://10.0.0.1:8000")).unwrap();
        chooses_among(&b, 1).await;
        // From now on the function that names the channel names another one: no notice is heard.
        db.client
            .batch_execute(
                "CREATE OR REPLACE FUNCTION studio_channel() RETURNS text LANGUAGE sql STABLE \
                 SET search_path = pg_catalog, pg_temp AS $$ SELECT 'nobody_listens' $$",
            )
            .await
            .unwrap();
        for health in [Health::NotReady, Health::Ready, Health::Draining] {
            a.workers().set_health(id, health).unwrap();
            eventually(SOON, "the importer sees it", || async {
                let seen = b.workers().get(id).unwrap().health();
                if seen == health { Ok(()) } else { Err(seen.to_string()) }
            })
            .await;
        }
        a.workers().remove(id).unwrap();
        shows(&b, &[]).await;
    })
    .await;
}

/// A burst larger than any channel: more changes than the events of a receiver, and than a page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_larger_than_any_channel_arrives_whole_and_removals_too() {
    timed(async {
        let db = Db::new().await;
        let (a, b) = (pod(&db, "a").await, pod(&db, "b").await);
        let mut watch = b.workers().watch();
        let mut ids: Vec<WorkerId> = Vec::new();
        for n in 0..3000_u32 {
            ids.push(a.workers().register(worker(&format!("http://10.0.{}.{}:80", n / 250, n % 250))).unwrap());
        }
        shows(&b, &ids).await;
        let gone = ids.split_off(100);
        for id in gone {
            a.workers().remove(id).unwrap();
        }
        shows(&b, &ids).await;
        let lagged = loop {
            match watch.try_recv() {
                Err(tokio::sync::broadcast::error::TryRecvError::Lagged(_)) => break true,
                Err(_) => break false,
                Ok(_) => {}
            }
        };
        assert!(lagged, "the burst was not larger than the channel");
    })
    .await;
}

/// A put that its tombstone overtook ends absent, whatever the order of the reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_registered_and_removed_again_and_again_ends_absent() {
    timed(async {
        let db = Db::new().await;
        let (a, b) = (pod(&db, "ends-absent").await, pod(&db, "ends-absent-b").await);
        for n in 0..300_u64 {
            let id = a.workers().register(worker("http://10.0.0.1:8000")).unwrap();
            tokio::time::sleep(Duration::from_micros(n * 37 % 5000)).await;
            a.workers().remove(id).unwrap();
            tokio::time::sleep(Duration::from_micros(n * 53 % 3000)).await;
        }
        assert!(a.workers().published(SOON).await);
        shows(&b, &[]).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        shows(&b, &[]).await;
        shows(&a, &[]).await;
        let rows: i64 = db.client.scalar("SELECT count(*) FROM studio_workers", &[]).await;
        assert_eq!(rows, 0);
        let refused = |e: &trace::Event| e.get("event").is_some_and(|e| e == "worker_refused");
        assert!(!trace::events("ends-absent").iter().any(refused));
    })
    .await;
}

/// Each living pod must have read past a tombstone before it goes. A pod that slept must not bring a worker back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tombstones_go_once_every_living_pod_has_read_past_them_and_not_before() {
    timed(async {
        let db = Db::new().await;
        let (a, b) = (pod(&db, "a").await, pod(&db, "b").await);
        let id = a.workers().register(worker("http://10.0.0.1:8000")).unwrap();
        shows(&b, &[id]).await;
        // A third pod of the registry that has read nothing for long: its entry stays where it is.
        let asleep = crate::support::start(db.config("asleep")).await;
        asleep.workers().ready().await;
        let entered = "UPDATE studio_worker_pods SET read_to = '3:3:' WHERE incarnation = $1";
        db.client.execute(entered, &[&asleep.incarnation().as_uuid()]).await.unwrap();
        a.workers().remove(id).unwrap();
        shows(&b, &[]).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let count = "SELECT count(*) FROM studio_worker_tombstones";
        assert_eq!(db.client.scalar::<i64>(count, &[]).await, 1, "it went although a living pod has not read past it");
        asleep.shutdown(Duration::from_secs(5)).await.unwrap();
        eventually(SOON, "the tombstone goes", || async {
            let rows: i64 = db.client.scalar(count, &[]).await;
            if rows == 0 { Ok(()) } else { Err(format!("{rows} tombstones")) }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spec_that_does_not_decode_is_imported_as_not_ready_with_a_warning_that_names_the_field() {
    timed(async {
        let db = Db::new().await;
        let (a, b) = (db.pod("undecoded-a").await, db.pod("undecoded-b").await);
        b.workers().ready().await;
        let id = WorkerId::of(a.pod_id(), "http://10.0.0.1:8000");
        let insert = "INSERT INTO studio_workers (worker_id, url, owner_pod, owner_incarnation, health, liveness, reported_at, spec) \
                      VALUES ($1, 'http://10.0.0.1:8000', 'undecoded-a', $2, 'ready', 'active', now(), '{\"weight\": \"heavy\"}')";
        db.client.execute(insert, &[&id.as_uuid(), &a.incarnation().as_uuid()]).await.unwrap();
        db.client.batch_execute("SELECT pg_notify(studio_channel(), 'workers')").await.unwrap();
        shows(&b, &[id]).await;
        let shown = b.workers().get(id).unwrap();
        assert_eq!(shown.health(), Health::NotReady);
        assert!(!shown.is_available());
        assert_eq!(serde_json::to_value(&shown).unwrap()["spec"], serde_json::json!({"weight": "heavy"}));
        let warned = trace::events("undecoded-b").into_iter().find(|e| e.get("event").is_some_and(|e| e == "worker_undecoded"));
        assert!(warned.is_some_and(|e| e["error"].contains("weight")));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_hears_of_what_happens_to_a_worker() {
    timed(async {
        let db = Db::new().await;
        let (a, b) = (db.pod("a").await, db.pod("b").await);
        let mut watch = b.workers().watch();
        let id = a.workers().register(worker("http://10.0.0.1:8000")).unwrap();
        let mut next = async || tokio::time::timeout(SOON, watch.recv()).await.expect("an event").unwrap();
        assert!(matches!(next().await, WorkerEvent::Added(w) if w.id() == id && w.is_available()));
        a.workers().set_health(id, Health::NotReady).unwrap();
        let event = next().await;
        assert!(
            matches!(&event, WorkerEvent::Health { worker, before: Health::Ready, .. } if worker.health() == Health::NotReady),
            "{event:?}"
        );
        a.workers().remove(id).unwrap();
        assert!(matches!(next().await, WorkerEvent::Removed(w) if w.id() == id));
    })
    .await;
}
