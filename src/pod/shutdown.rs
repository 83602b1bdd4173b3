//! The clean stop: runs first, the lock last, so that the aborted and the resumed never overlap.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::shared::Shared;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::pods;
use crate::runs::StopReason;

/// A stop without any grace still tries for so long to say that it was a clean one.
const MARK_AT_LEAST: Duration = Duration::from_millis(500);

/// How the runs of a stopped pod ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Succeeded or failed during the drain.
    pub finished: usize,
    /// Given back for another pod to go on with.
    pub yielded: usize,
    /// Aborted at the deadline; survivors go on with them.
    pub aborted: usize,
}

pub(crate) async fn shutdown(shared: &Arc<Shared>, deadline: Duration) -> Result<ShutdownReport> {
    let until = Instant::now() + deadline;
    let (finished, yielded) = shared.endings();
    shared.set_draining();
    shared.stop_all_runs(StopReason::Draining);
    let mark_until = until.max(Instant::now() + MARK_AT_LEAST);
    tokio::join!(tokio::time::timeout_at(mark_until, mark(shared)), wait_for_runs(shared, until)).0.unwrap_or_else(|_| {
        tracing::warn!(target: "podlock", event = "drain_unmarked", pod = %shared.pod_id, "the row could not be marked as draining in time");
    });
    let aborted = shared.registry.abort_all();
    wait_for_runs(shared, Instant::now() + shared.settings.lease).await;
    let stuck = shared.registry.run_ids();
    if !stuck.is_empty() {
        shared.set_stuck();
        let names: Vec<String> = stuck.iter().map(ToString::to_string).collect();
        return Err(Error::new(
            ErrorKind::Stuck,
            format!("pod {} cannot stop: {} aborted runs still run: {}", shared.pod_id, names.len(), names.join(", ")),
        )
        .left("the pod keeps its lock, so that nobody resumes them meanwhile")
        .todo("end the process; let handlers await, or do blocking work on spawn_blocking"));
    }
    let now = shared.endings();
    let report = ShutdownReport { finished: now.0 - finished, yielded: now.1 - yielded, aborted };
    end(shared).await;
    tracing::info!(
        target: "podlock", event = "drained", pod = %shared.pod_id, incarnation = %shared.incarnation(),
        finished = report.finished, yielded = report.yielded, aborted = report.aborted, "stopped cleanly"
    );
    Ok(report)
}

/// Says in the row that the pod drains. That it cannot be said does not stop the stop: the death is then recorded as a
/// loss.
async fn mark(shared: &Shared) {
    match pods::mark_draining(&shared.db, shared.incarnation()).await {
        Ok(_) => {}
        Err(e) => {
            tracing::warn!(target: "podlock", event = "drain_unmarked", pod = %shared.pod_id, error = %e, "the row could not be marked as draining")
        }
    }
}

/// Drains as soon as somebody asks for it; the service answers with a shutdown when it is ready.
pub(crate) async fn drain_on_request(shared: Arc<Shared>) {
    tokio::select! {
        biased;
        () = shared.root.cancelled() => {}
        () = shared.drain_requested.cancelled() => {
            shared.set_draining();
            mark(&shared).await;
        }
    }
}

async fn wait_for_runs(shared: &Shared, until: Instant) {
    // Past the time, what is left is aborted, or reported.
    let _ = tokio::time::timeout_at(until, shared.registry.emptied()).await;
}

/// Ends the sessions, then everything else.
async fn end(shared: &Shared) {
    shared.root.cancel();
    shared.ended.cancelled().await;
    let keeper = shared.keeper().take();
    if let Some(keeper) = keeper
        && keeper.join().is_err()
    {
        tracing::error!(target: "podlock", event = "failed", pod = %shared.pod_id, "the keeper's thread panicked");
    }
    shared.tracker.close();
    shared.tracker.wait().await;
    shared.db.close();
}
