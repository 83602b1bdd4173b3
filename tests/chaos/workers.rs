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
/// How often one worker of each pod changes its health. A pod that was stopped is overdue when it wakes, so it tries to
/// publish at once.
const CHANGES: Duration = Duration::from_secs(1);

/// The environment of a pod that has so many workers.
pub(crate) fn environment(count: u32) -> Vec<(&'static str, String)> {
    let ms = |time: Duration| format!("{}ms", time.as_millis());
    vec![
        (WORKERS, count.to_string()),
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
    let (mut says, mut changes) = (tokio::time::interval(SAYS), tokio::time::interval(CHANGES));
    says.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    changes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = says.tick() => {
                let (mut shown, mut own) = (BTreeMap::<String, u32>::new(), 0);
                // The status first: what is shown is not older than it.
                let status = pod.status();
                for worker in workers.list() {
                    *shown.entry(worker.owner_incarnation().to_string()).or_default() += 1;
                    own += u32::from(worker.origin() == Origin::Local);
                }
                tell(json!({
                    "ev": "shows", "by": status.incarnation, "attached": status.attached, "own": own, "shown": shown,
                }));
            }
            _ = changes.tick() => {
                let local = workers.list().into_iter().find(|worker| worker.origin() == Origin::Local);
                if let Some(worker) = local {
                    let next = if worker.health() == Health::Ready { Health::Draining } else { Health::Ready };
                    workers.set_health(worker.id(), next).expect("a worker of this pod");
                }
            }
        }
    }
}
