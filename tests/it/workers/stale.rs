//! A worker that its owner does not report is inactive, and active again when reports resume.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use podlock::workers::{Filter, Health, HealthCheck, Liveness, NewWorker, Worker, WorkerEvent};
use podlock::{Pod, PodBuilder, WorkerId};

use super::{SOON, worker};
use crate::support::{Db, eventually, timed};

const REPORT: Duration = Duration::from_millis(200);

fn builder(db: &Db, name: &str) -> PodBuilder {
    Pod::builder(db.config(name).with(|c| {
        c.worker_report_interval = REPORT;
        c.worker_monitor_interval = Duration::from_millis(300);
    }))
}

async fn is(pod: &Pod, id: WorkerId, what: &str, expected: impl Fn(&Worker) -> bool) {
    eventually(SOON, what, || async {
        let worker = pod.workers().get(id).ok_or("not shown")?;
        if expected(&worker) { Ok(()) } else { Err(format!("{worker:?}")) }
    })
    .await;
}

async fn stored(db: &Db, expected: &str) {
    eventually(SOON, "the monitor has written it", || async {
        let row: String = db.client.scalar("SELECT concat_ws(' ', health, liveness) FROM studio_workers", &[]).await;
        if row == expected { Ok(()) } else { Err(row) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_probes_hang_is_inactive_after_some_looks_and_active_again_without_a_restart() {
    timed(async {
        let db = Db::new().await;
        let b = builder(&db, "b").start().await.unwrap();
        b.workers().ready().await;
        is_monitor(&db, &b).await;
        let hangs = Arc::new(AtomicBool::new(false));
        let probe = Arc::clone(&hangs);
        let a = builder(&db, "a")
            .worker_probe("mine", move |_| {
                let hangs = Arc::clone(&probe);
                async move {
                    if hangs.load(Ordering::Acquire) {
                        std::future::pending::<()>().await;
                    }
                    Ok(())
                }
            })
            .start()
            .await
            .unwrap();
        // A time-out so long that a hanging probe does not end: nothing is reported, not even a failure.
        let check =
            HealthCheck::function("mine").interval(Duration::from_millis(50)).timeout(Duration::from_millis(400));
        let id = a.workers().register(NewWorker::new("http://10.0.0.1:8000").health_check(check.clone())).unwrap();
        is(&b, id, "it is reported", |w| w.liveness() == Liveness::Active && w.health() == Health::Ready).await;
        stored(&db, "ready active").await;
        hangs.store(true, Ordering::Release);
        let slow = check.timeout(Duration::from_secs(600)).interval(Duration::from_millis(100));
        a.workers().register_or_replace(NewWorker::new("http://10.0.0.1:8000").health_check(slow)).unwrap();
        is(&b, id, "it was never reported with this check", |w| w.liveness() == Liveness::Inactive).await;
        assert_eq!(b.workers().available(&Filter::new()).count(), 0);
        stored(&db, "pending inactive").await;
        drop(a);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_monitor_calls_the_workers_of_a_silent_owner_inactive_and_says_so_once() {
    timed(async {
        let db = Db::new().await;
        let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
        let hook = Arc::clone(&heard);
        let b = builder(&db, "b")
            .on_worker_change(move |event| {
                let word = match event {
                    WorkerEvent::Inactive(_) => "inactive",
                    WorkerEvent::Active(_) => "active",
                    _ => return,
                };
                hook.lock().unwrap().push(word);
                assert_ne!(word, "inactive", "a hook that panics is called again");
            })
            .start()
            .await
            .unwrap();
        // The monitor looks as often as its own settings say.
        is_monitor(&db, &b).await;
        // It reports once, and then not again while the test runs. Its entry says that it reports as often as the others.
        let config = db.config("a").with(|c| c.worker_report_interval = Duration::from_secs(3600));
        let a = Pod::builder(config).start().await.unwrap();
        let id = a.workers().register(worker("http://10.0.0.1:8000")).unwrap();
        is(&b, id, "its row reports it", |w| w.liveness() == Liveness::Active).await;
        let says = "UPDATE studio_worker_pods SET report_ms = 200 WHERE incarnation = $1";
        assert_eq!(db.client.execute(says, &[&a.incarnation().as_uuid()]).await.unwrap(), 1);
        is(&b, id, "its owner is silent", |w| w.liveness() == Liveness::Inactive && w.health() == Health::Ready).await;
        assert_eq!(b.workers().available(&Filter::new()).count(), 0);
        // The monitor writes its own column, never the owner's.
        stored(&db, "ready inactive").await;
        let events = "SELECT count(*) FROM studio_pod_events WHERE kind = $1 AND pod_id = 'a'";
        assert_eq!(db.client.scalar::<i64>(events, &[&"workers_inactive"]).await, 1);
        // A pod that starts now believes the monitor, although it has made no look of its own.
        let c = builder(&db, "c").start().await.unwrap();
        c.workers().ready().await;
        is(&c, id, "the monitor has called it inactive", |w| w.liveness() == Liveness::Inactive).await;
        // The owner reports again.
        a.workers().set_health(id, Health::Ready).unwrap();
        let report = "UPDATE studio_worker_pods SET report = report + 1, reported_at = now() WHERE incarnation = $1";
        assert_eq!(db.client.execute(report, &[&a.incarnation().as_uuid()]).await.unwrap(), 1);
        for pod in [&b, &c] {
            is(pod, id, "its owner reports again", |w| w.liveness() == Liveness::Active).await;
        }
        stored(&db, "ready active").await;
        assert_eq!(db.client.scalar::<i64>(events, &[&"workers_active"]).await, 1);
        assert_eq!(*heard.lock().unwrap(), ["inactive", "active"]);
        assert_eq!(db.client.scalar::<i64>(events, &[&"workers_inactive"]).await, 1);
    })
    .await;
}

/// Waits until the pod looks after the liveness of workers.
async fn is_monitor(db: &Db, pod: &Pod) {
    eventually(SOON, "the pod is the monitor", || async {
        let seat: Option<uuid::Uuid> = db.client.scalar("SELECT incarnation FROM studio_worker_monitor", &[]).await;
        if seat == Some(pod.incarnation().as_uuid()) { Ok(()) } else { Err(format!("{seat:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_pod_at_a_time_is_the_monitor_and_another_takes_over_when_it_dies() {
    timed(async {
        let db = Db::new().await;
        let [keeper, other] = db.settled_pods().await;
        let a = builder(&db, "first").start().await.unwrap();
        a.workers().ready().await;
        is_monitor(&db, &a).await;
        let b = builder(&db, "second").start().await.unwrap();
        b.workers().ready().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        is_monitor(&db, &a).await;
        drop(a);
        is_monitor(&db, &b).await;
        drop((keeper, other));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitor_that_lives_and_stands_still_is_replaced() {
    timed(async {
        let db = Db::new().await;
        // Its next round comes in an hour.
        let still = db.config("still").with(|c| c.worker_monitor_interval = Duration::from_secs(3600));
        let still = Pod::builder(still).start().await.unwrap();
        still.workers().ready().await;
        is_monitor(&db, &still).await;
        let other = builder(&db, "other").start().await.unwrap();
        other.workers().ready().await;
        is_monitor(&db, &other).await;
        assert!(still.status().attached);
    })
    .await;
}
