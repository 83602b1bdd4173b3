//! The workers of a pod's process: it registers some when it starts, changes one of them again and again, and says all
//! the time what its own copy shows.

use std::collections::BTreeMap;
use std::time::Duration;

use podlock::Pod;
use podlock::workers::{Health, NewWorker, Origin, WorkerSpec};
use serde_json::json;

use crate::pod::tell;

/// Set in the environment of a pod: how many workers it registers at its start. Without it, the pod does not use the
/// registry.
pub(crate) const WORKERS: &str = "CHAOS_WORKERS";
/// How often a pod reports its workers and compares its copy: short, so that a run of the suite has many of these.
pub(crate) const REPORTS: Duration = Duration::from_secs(1);
/// How often the monitor looks.
pub(crate) const MONITORS: Duration = Duration::from_secs(2);
/// How often a pod says what it shows.
pub(crate) const SAYS: Duration = Duration::from_millis(200);
/// Set in the environment of a pod: how many milliseconds there are between two changes of the health of one of its
/// workers. 0: none is changed.
const CHANGES: &str = "CHAOS_WORKER_CHANGES";

/// What a pod has of workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workers {
    pub(crate) count: u32,
    /// The time between two changes of the health of one of them, jittered. After a change, replicas read without a
    /// notification for a while. A pod that was stopped is overdue when it wakes, so it tries to publish at once.
    pub(crate) changes: Duration,
}

/// The environment of a pod that has these workers.
pub(crate) fn environment(workers: Workers) -> Vec<(&'static str, String)> {
    let ms = |time: Duration| format!("{}ms", time.as_millis());
    vec![
        (WORKERS, workers.count.to_string()),
        (CHANGES, workers.changes.as_millis().to_string()),
        ("PODLOCK_WORKER_REPORT_INTERVAL", ms(REPORTS)),
        ("PODLOCK_WORKER_MONITOR_INTERVAL", ms(MONITORS)),
    ]
}

/// Registers further workers. They have no health check, so they are ready.
pub(crate) fn register(pod: &Pod, count: u32) {
    let workers = pod.workers();
    let first = workers.list().iter().filter(|worker| worker.origin() == Origin::Local).count();
    for n in 0..count as usize {
        let url = format!("http://{}-{}.workers:8000", pod.pod_id(), first + n);
        workers.register(NewWorker::new(url).spec(WorkerSpec::new().kind("llm").model("m"))).expect("a worker");
    }
}

/// Says what the pod shows, and changes a worker, until it is aborted.
pub(crate) async fn show(pod: Pod) {
    let workers = pod.workers();
    let changes =
        std::env::var(CHANGES).ok().and_then(|ms| ms.parse().ok()).map_or(Duration::ZERO, Duration::from_millis);
    let mut says = tokio::time::interval(SAYS);
    says.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let next = || tokio::time::Instant::now() + changes.mul_f64(0.5 + fastrand::f64());
    let mut change = next();
    loop {
        tokio::select! {
            _ = says.tick() => {
                let (mut shown, mut registered) = (BTreeMap::<String, u32>::new(), 0);
                // The status first: what is shown is not older than it.
                let status = pod.status();
                for worker in workers.list() {
                    *shown.entry(worker.owner_incarnation().to_string()).or_default() += 1;
                    registered += u32::from(worker.origin() == Origin::Local);
                }
                tell(json!({
                    "ev": "shows", "by": status.incarnation, "attached": status.attached, "registered": registered, "shown": shown,
                }));
            }
            () = tokio::time::sleep_until(change), if !changes.is_zero() => {
                change = next();
                let local = workers.list().into_iter().find(|worker| worker.origin() == Origin::Local);
                if let Some(worker) = local {
                    let other = if worker.health() == Health::Ready { Health::Draining } else { Health::Ready };
                    workers.set_health(worker.id(), other).expect("a worker of this pod");
                }
            }
        }
    }
}
