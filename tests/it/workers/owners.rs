//! One writer per worker: only the pod that registered it writes it, whatever others write.

use std::time::Duration;

use podlock::workers::{Filter, Health, HealthCheck, NewWorker, Origin, WorkerSpec};
use podlock::{ErrorKind, WorkerId};

use super::{SOON, chooses_among, shows, worker};
use crate::support::{Db, eventually, timed, trace};

const URL: &str = "http://10.0.0.1:8000";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_removal_of_a_worker_is_refused_with_a_warning_and_the_row_is_published_again() {
    timed(async {
        let db = Db::new().await;
        let (a, b) = (db.pod("refuses-a").await, db.pod("refuses-b").await);
        let id = a.workers().register(worker(URL)).unwrap();
        shows(&b, &[id]).await;
        assert!(a.workers().published(SOON).await);
        let remove = "WITH gone AS (DELETE FROM studio_workers RETURNING worker_id) \
                      SELECT pg_notify(studio_channel(), 'workers') FROM gone";
        db.client.query(remove, &[]).await.unwrap();
        eventually(SOON, "the row is there again", || async {
            let rows: i64 = db.client.scalar("SELECT count(*) FROM studio_workers", &[]).await;
            if rows == 1 { Ok(()) } else { Err(format!("{rows} rows")) }
        })
        .await;
        let refused = |e: &trace::Event| e.get("event").is_some_and(|e| e == "worker_refused");
        assert!(trace::events("refuses-a").iter().any(refused), "{:?}", trace::events("refuses-a"));
        shows(&a, &[id]).await;
        shows(&b, &[id]).await;
        assert_eq!(a.workers().get(id).unwrap().origin(), Origin::Local);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_state_of_a_worker_is_refused_and_put_right() {
    timed(async {
        let db = Db::new().await;
        let (a, b) = (db.pod("state-a").await, db.pod("state-b").await);
        let id = a.workers().register(worker(URL)).unwrap();
        shows(&b, &[id]).await;
        assert!(a.workers().published(SOON).await);
        for (column, value) in [("health", "'failed'"), ("url", "'http://10.6.6.6:1'"), ("spec", "'{\"model\":\"x\"}'")]
        {
            let write = format!("UPDATE studio_workers SET {column} = {value}");
            db.client.batch_execute(&write).await.unwrap();
            db.client.batch_execute("SELECT pg_notify(studio_channel(), 'workers')").await.unwrap();
            eventually(SOON, "the owner has written its own state", || async {
                let sql = "SELECT concat_ws(' ', url, health, spec->>'model') FROM studio_workers";
                let row: String = db.client.scalar(sql, &[]).await;
                if row == format!("{URL} ready m") { Ok(()) } else { Err(row) }
            })
            .await;
        }
        chooses_among(&b, 1).await;
        eventually(SOON, "the importer has read the owner's spec again", || async {
            let model = b.workers().get(id).ok_or("not shown")?.spec().model.clone();
            if model.as_deref() == Some("m") { Ok(()) } else { Err(format!("{model:?}")) }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_can_be_changed_and_removed_by_its_owner_alone() {
    timed(async {
        let db = Db::new().await;
        let (a, b) = (db.pod("a").await, db.pod("b").await);
        let id = a.workers().register(worker(URL)).unwrap();
        shows(&b, &[id]).await;
        let error = b.workers().remove(id).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("pod a"), "{error}");
        assert!(b.workers().set_health(id, Health::Ready).is_err());
        a.workers().set_health(id, Health::Failed).unwrap();
        eventually(SOON, "the importer sees it as failed", || async {
            let health = b.workers().get(id).unwrap().health();
            if health == Health::Failed { Ok(()) } else { Err(health.to_string()) }
        })
        .await;
        // An importer removes no failed import; its owner does.
        assert_eq!(b.workers().remove_unhealthy(), []);
        shows(&b, &[id]).await;
        assert_eq!(a.workers().remove_unhealthy(), [id]);
        shows(&b, &[]).await;
        let tombstones: i64 = db.client.scalar("SELECT count(*) FROM studio_worker_tombstones", &[]).await;
        assert_eq!(tombstones, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_one_url_the_local_worker_is_shown_and_when_one_goes_the_other_takes_over() {
    timed(async {
        let db = Db::new().await;
        let (a, b, c) = (db.pod("a").await, db.pod("b").await, db.pod("c").await);
        let (of_a, of_b) = (WorkerId::of(a.pod_id(), URL), WorkerId::of(b.pod_id(), URL));
        let (lower, higher, owner_of_lower) = if of_a < of_b { (of_a, of_b, &a) } else { (of_b, of_a, &b) };
        assert_eq!(a.workers().register_or_replace(worker(URL)).unwrap(), of_a);
        shows(&b, &[of_a]).await;
        // The pod that imports the URL registers it: promoted to local, and published at once.
        assert_eq!(b.workers().register_or_replace(worker(URL)).unwrap(), of_b);
        assert_eq!(b.workers().list()[0].origin(), Origin::Local);
        shows(&b, &[of_b]).await;
        shows(&a, &[of_a]).await;
        shows(&c, &[lower]).await;
        chooses_among(&c, 1).await;
        owner_of_lower.workers().remove(lower).unwrap();
        shows(&c, &[higher]).await;
        chooses_among(&c, 1).await;
        for pod in [&a, &b] {
            shows(pod, &[higher]).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_pod_keeps_its_ids_and_replaces_what_its_former_process_left() {
    timed(async {
        let db = Db::new().await;
        let b = db.pod("b").await;
        let first = db.pod("a").await;
        let incarnation = first.incarnation();
        let id = first.workers().register(worker(URL)).unwrap();
        let other = first.workers().register(worker("http://10.0.0.2:8000")).unwrap();
        shows(&b, &[id, other]).await;
        drop(first);
        let second = db.pod("a").await;
        assert_ne!(second.incarnation(), incarnation);
        let spec = WorkerSpec::new().kind("llm").model("newer");
        assert_eq!(second.workers().register_or_replace(NewWorker::new(URL).spec(spec)).unwrap(), id);
        // What it does not register again is gone.
        shows(&b, &[id]).await;
        shows(&second, &[id]).await;
        eventually(SOON, "the replica has the newer one", || async {
            let shown = b.workers().get(id).ok_or("not shown")?;
            let is_new =
                shown.owner_incarnation() == second.incarnation() && shown.spec().model.as_deref() == Some("newer");
            if is_new { Ok(()) } else { Err(format!("{shown:?}")) }
        })
        .await;
        eventually(SOON, "its former rows are gone", || async {
            let sql = "SELECT count(*) FROM studio_workers";
            let rows: i64 = db.client.scalar(sql, &[]).await;
            if rows == 1 { Ok(()) } else { Err(format!("{rows} rows")) }
        })
        .await;
    })
    .await;
}

/// The write of a process that froze and was buried is refused by its incarnation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_of_an_incarnation_that_is_not_in_the_roster_is_not_written() {
    timed(async {
        let db = Db::new().await;
        let a = db.pod("a").await;
        let id = a.workers().register(worker(URL)).unwrap();
        assert!(a.workers().published(SOON).await);
        // As if it were buried, before it has heard of it.
        db.client.batch_execute("BEGIN; DELETE FROM studio_workers; DELETE FROM studio_pods").await.unwrap();
        a.workers().set_health(id, Health::NotReady).unwrap();
        let _ = a.workers().published(Duration::from_millis(300)).await;
        let sql = "SELECT count(*) FROM studio_workers";
        assert_eq!(db.client.scalar::<i64>(sql, &[]).await, 0);
        db.client.batch_execute("COMMIT").await.unwrap();
        // It registers anew, and publishes under its new incarnation.
        let former = a.incarnation();
        eventually(SOON, "its worker is there again", || async {
            let sql = "SELECT count(*) FROM studio_workers WHERE owner_incarnation <> $1";
            let rows: i64 = db.client.scalar(sql, &[&former.as_uuid()]).await;
            if rows == 1 { Ok(()) } else { Err(format!("{rows} rows")) }
        })
        .await;
        let stale: i64 = db
            .client
            .scalar("SELECT count(*) FROM studio_workers WHERE owner_incarnation = $1", &[&former.as_uuid()])
            .await;
        assert_eq!(stale, 0);
        assert_eq!(a.workers().get(id).unwrap().owner_incarnation(), a.incarnation());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_worker_keeps_its_leases_gets_no_new_ones_and_leaves_when_its_owner_says_so() {
    timed(async {
        let db = Db::new().await;
        let (a, b) = (db.pod("a").await, db.pod("b").await);
        let id = a.workers().register(worker(URL)).unwrap();
        chooses_among(&b, 1).await;
        let all = b.workers().available(&Filter::new());
        let lease = all.least_in_flight().unwrap();
        assert_eq!(b.workers().get(id).unwrap().in_flight(), 1);
        a.workers().set_health(id, Health::Draining).unwrap();
        chooses_among(&b, 0).await;
        assert!(all.least_in_flight().is_none() && all.weighted().is_none());
        assert_eq!((lease.url(), lease.worker().health()), (URL, Health::Draining));
        drop(lease);
        assert_eq!(b.workers().get(id).unwrap().in_flight(), 0);
        shows(&b, &[id]).await;
        a.workers().remove(id).unwrap();
        shows(&b, &[]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_in_no_row_and_a_spec_that_is_too_large_is_refused() {
    timed(async {
        let db = Db::new().await;
        let a = db.pod("a").await;
        let workers = a.workers();
        let secret = podlock::workers::Secret::new("hunter2secret");
        let spec = WorkerSpec::new().model("m").secret("api_key", secret.clone()).secret("other", secret);
        let check = HealthCheck::http("/health").secret_header("authorization", "api_key");
        let id = workers.register(NewWorker::new(URL).spec(spec).health_check(check)).unwrap();
        assert!(workers.published(SOON).await);
        let row: String = db.client.scalar("SELECT w::text FROM studio_workers w", &[]).await;
        let shown = format!("{row} {} {:?}", serde_json::to_string(&workers.list()).unwrap(), workers.get(id));
        assert!(row.contains("model") && !shown.contains("hunter2"), "{shown}");
        let mut large = WorkerSpec::new();
        large.other.insert("large".to_owned(), "x".repeat(64 * 1024).into());
        let error = workers.register(NewWorker::new("http://10.0.0.2:1").spec(large)).unwrap_err();
        assert!(error.kind() == ErrorKind::TooLarge && error.to_string().contains("worker_spec_max_bytes"), "{error}");
        let mut unstorable = WorkerSpec::new();
        unstorable.other.insert("nul".to_owned(), "\0".into());
        let error = workers.register(NewWorker::new("http://10.0.0.2:1").spec(unstorable)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(workers.bytes() < 200, "{}", workers.bytes());
    })
    .await;
}

/// L12: a transaction that somebody leaves open delays the write of its row alone, and makes no flood of notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_a_locked_row_delays_its_own_write_alone() {
    timed(async {
        let db = Db::new().await;
        let (a, b) = (db.pod("a").await, db.pod("b").await);
        let held = a.workers().register(worker(URL)).unwrap();
        let free = a.workers().register(worker("http://10.0.0.2:8000")).unwrap();
        shows(&b, &[held, free]).await;
        assert!(a.workers().published(SOON).await);
        let (client, mut heard) = crate::support::sql::listening(&db.url).await;
        client.batch_execute("LISTEN podlock_public").await.unwrap();
        let lock = format!("BEGIN; SELECT FROM studio_workers WHERE worker_id = '{held}' FOR UPDATE");
        db.client.batch_execute(&lock).await.unwrap();
        for id in [held, free] {
            a.workers().set_health(id, Health::NotReady).unwrap();
        }
        eventually(SOON, "the other one is seen", || async {
            let seen = b.workers().get(free).unwrap().health();
            if seen == Health::NotReady { Ok(()) } else { Err(seen.to_string()) }
        })
        .await;
        assert_eq!(b.workers().get(held).unwrap().health(), Health::Ready);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut notices = 0;
        while let Ok(word) = heard.try_recv() {
            notices += usize::from(word == "workers");
        }
        assert!(notices <= 3, "{notices} notices, of one change that was written and one that waits");
        db.client.batch_execute("COMMIT").await.unwrap();
        eventually(SOON, "it is seen as well", || async {
            let seen = b.workers().get(held).unwrap().health();
            if seen == Health::NotReady { Ok(()) } else { Err(seen.to_string()) }
        })
        .await;
    })
    .await;
}

/// L12: nothing that somebody does to the registry keeps a pod from being buried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l12_locked_rows_of_workers_and_tombstones_delay_no_burial() {
    timed(async {
        let db = Db::new().await;
        let [a, _b] = db.settled_pods().await;
        let dead = db.pod("dead").await;
        let (incarnation, workers) = (dead.incarnation(), dead.workers());
        let id = workers.register(worker(URL)).unwrap();
        let other = workers.register(worker("http://10.0.0.2:8000")).unwrap();
        assert!(workers.published(SOON).await);
        // One of them has a tombstone of an earlier life.
        workers.remove(other).unwrap();
        assert!(workers.published(SOON).await);
        workers.register(worker("http://10.0.0.2:8000")).unwrap();
        shows(&a, &[id, other]).await;
        let lock = format!(
            "BEGIN; SELECT FROM studio_worker_tombstones FOR UPDATE; \
             SELECT FROM studio_workers WHERE worker_id = '{id}' FOR UPDATE; SELECT FROM studio_worker_pods FOR UPDATE"
        );
        db.client.batch_execute(&lock).await.unwrap();
        drop((workers, dead));
        let other_client = crate::support::sql::connect(&db.url).await;
        eventually(SOON, "it is buried, and one worker with it", || async {
            let end = other_client.session_end(incarnation).await;
            let rows: i64 = other_client.scalar("SELECT count(*) FROM studio_workers", &[]).await;
            if end.is_some() && rows == 1 { Ok(()) } else { Err(format!("{end:?}, {rows} rows")) }
        })
        .await;
        shows(&a, &[]).await;
        db.client.batch_execute("COMMIT").await.unwrap();
    })
    .await;
}

/// The rows go in the transaction of the burial: nobody sees the one without the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_burial_deletes_the_workers_in_its_own_transaction() {
    timed(async {
        let db = Db::new().await;
        let [_a, _b] = db.settled_pods().await;
        let dead = db.pod("dead").await;
        let (incarnation, workers) = (dead.incarnation(), dead.workers());
        for n in 0..300 {
            workers.register(worker(&format!("http://10.1.0.1:{}", 1000 + n))).unwrap();
        }
        assert!(workers.published(SOON).await);
        drop((workers, dead));
        let seen = eventually(SOON, "it is buried", || async {
            let sql = "SELECT (SELECT count(*) FROM studio_pods WHERE incarnation = $1), \
                              (SELECT count(*) FROM studio_workers), (SELECT count(*) FROM studio_worker_tombstones)";
            let row = db.client.query_one(sql, &[&incarnation.as_uuid()]).await.unwrap();
            let seen: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            if seen.0 == 0 { Ok(seen) } else { Err(format!("{seen:?}")) }
        })
        .await;
        // Bounded: the rest is hidden by its owner's absence, and deleted by the monitor, if it was not yet.
        assert!(seen.1 <= 44 && seen.2 >= 256, "{seen:?}");
    })
    .await;
}
