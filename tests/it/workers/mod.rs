//! The registry of workers: what one pod registers, every pod sees.

mod agree;
mod basics;
mod owners;
mod repairs;
mod stale;

use std::time::Duration;

use podlock::workers::{Filter, NewWorker, WorkerSpec};
use podlock::{Pod, WorkerId};

use crate::support::eventually;

/// Generous: nothing here decides by a clock.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A worker that is not probed.
pub(crate) fn worker(url: &str) -> NewWorker {
    NewWorker::new(url).spec(WorkerSpec::new().kind("llm").model("m"))
}

/// Waits until the pod shows exactly these workers.
pub(crate) async fn shows(pod: &Pod, expected: &[WorkerId]) {
    let mut expected = expected.to_vec();
    expected.sort();
    eventually(SOON, "the pod shows the workers", || async {
        let shown: Vec<WorkerId> = pod.workers().list().iter().map(podlock::workers::Worker::id).collect();
        if shown == expected { Ok(()) } else { Err(format!("{shown:?}, expected {expected:?}")) }
    })
    .await;
}

/// Waits until the pod would choose among exactly so many workers.
pub(crate) async fn chooses_among(pod: &Pod, expected: usize) {
    eventually(SOON, "the pod chooses among the workers", || async {
        let count = pod.workers().available(&Filter::new()).count();
        if count == expected { Ok(()) } else { Err(format!("{count}: {:#?}", pod.workers().list())) }
    })
    .await;
}
