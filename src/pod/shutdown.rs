//! The clean stop: runs end first and the lock is released last, so that an aborted run never overlaps with its next
//! attempt.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::shared::Shared;
use crate::background::part::{Next, Part};
use crate::backoff::Backoff;
use crate::config::RECONNECT_BACKOFF_MIN;
use crate::error::{Error, ErrorKind, Result};
use crate::id::RunId;
use crate::meters;
use crate::runs::{StopReason, failures, herald};
use crate::store::pods;

/// How long a stop without any grace still tries to record that it is a clean one.
const MARK_AT_LEAST: Duration = Duration::from_millis(500);

/// The longest deadline; a longer one counts as this. A clock of the system can represent it.
const LONGEST: Duration = Duration::from_secs(30 * 365 * 86400);

/// How long a stop waits for its last append to the event log. Longer delays the burial, and with it the next owners.
/// Shorter loses the event if the log is busy.
const TELL_AT_MOST: Duration = Duration::from_millis(500);

const POLL: Duration = Duration::from_millis(20);

/// How the runs of a stopped pod ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Succeeded or failed during the drain.
    pub finished: usize,
    /// Released for another pod to continue.
    pub yielded: usize,
    /// Aborted at the deadline. Survivors take them over.
    pub aborted: usize,
}

pub(crate) async fn shutdown(shared: &Arc<Shared>, deadline: Duration) -> Result<ShutdownReport> {
    let until = in_time(deadline);
    let (finished, yielded) = shared.engine.endings();
    shared.member.set_draining();
    shared.engine.stop_all_runs(StopReason::Draining);
    let mark_until = until.max(Instant::now() + MARK_AT_LEAST);
    tokio::join!(tokio::time::timeout_at(mark_until, mark(shared)), wait_for_runs(shared, until)).0.unwrap_or_else(
        |_| {
            tracing::warn!(
                target: "podlock", event = "drain_unmarked", pod = %shared.member.pod_id,
                "the row could not be marked as draining in time"
            );
        },
    );
    let aborted = shared.engine.registry.abort_all();
    let stuck = wait_for_tasks(shared, Instant::now() + shared.member.settings.lease).await;
    if !stuck.is_empty() {
        shared.set_stuck();
        let names: Vec<String> = stuck.iter().map(ToString::to_string).collect();
        return Err(Error::new(
            ErrorKind::Stuck,
            format!(
                "pod {} cannot stop: {} aborted runs still run: {}",
                shared.member.pod_id,
                names.len(),
                names.join(", ")
            ),
        )
        .state("the pod keeps its lock, so that nobody resumes them meanwhile")
        .help("end the process; let handlers await, or do blocking work on spawn_blocking"));
    }
    tell_of_failures(shared).await;
    tokio::join!(tell_of_the_yielded(shared), tell_that_it_stopped(shared), shared.samples.drain());
    let now = shared.engine.endings();
    let report = ShutdownReport { finished: now.0 - finished, yielded: now.1 - yielded, aborted };
    end(shared).await;
    tracing::info!(
        target: "podlock", event = "drained", pod = %shared.member.pod_id, incarnation = %shared.member.incarnation(),
        finished = report.finished, yielded = report.yielded, aborted = report.aborted, "stopped cleanly"
    );
    Ok(report)
}

/// The moment `time` from now, at most [`LONGEST`] away. A service may pass any `time`, such as [`Duration::MAX`].
fn in_time(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time.min(LONGEST)).unwrap_or(now)
}

/// Records in the row that the pod drains, however often it takes. A failure that does not pass does not keep the pod
/// from stopping; its end is then recorded as a loss.
async fn mark(shared: &Shared) {
    let mut backoff = mark_backoff(shared);
    while let Marked::NotYet = try_to_mark(shared).await {
        tokio::time::sleep(backoff.delay()).await;
    }
}

fn mark_backoff(shared: &Shared) -> Backoff {
    Backoff::new(RECONNECT_BACKOFF_MIN, shared.member.settings.reconnect_backoff_max)
}

/// The result of one try to mark the row.
enum Marked {
    /// The row is marked, or cannot be.
    Settled,
    NotYet,
}

async fn try_to_mark(shared: &Shared) -> Marked {
    match pods::mark_draining(&shared.engine.db, shared.member.incarnation()).await {
        Ok(_) => {
            meters::count(meters::NOTICES_SENT, "about", "drain");
            Marked::Settled
        }
        Err(e) if e.is_transient() => Marked::NotYet,
        Err(e) => {
            tracing::warn!(
                target: "podlock", event = "drain_unmarked", pod = %shared.member.pod_id, error = %e,
                "the row could not be marked as draining"
            );
            Marked::Settled
        }
    }
}

/// Drains as soon as a drain is requested. The service shuts the pod down when it is ready.
pub(crate) struct Drain {
    pub(crate) shared: Arc<Shared>,
}

impl Part for Drain {
    const NAME: &'static str = "the drain";

    async fn woken(&mut self) {
        self.shared.member.drain_requested.cancelled().await;
    }

    fn backoff(&self) -> Backoff {
        mark_backoff(&self.shared)
    }

    async fn work(&mut self) -> Next {
        self.shared.member.set_draining();
        match try_to_mark(&self.shared).await {
            Marked::Settled => Next::Never,
            Marked::NotYet => Next::BackOff,
        }
    }
}

/// Reports the runs that failed since the last append to the event log. The stop does not wait for it for long, because
/// the rows of the runs say the same.
async fn tell_of_failures(shared: &Shared) {
    if tokio::time::timeout(TELL_AT_MOST, failures::tell(&shared.engine)).await.is_err() {
        tracing::debug!(
            target: "podlock", event = "failures_untold", pod = %shared.member.pod_id,
            "the event log could not be told of failed runs in time"
        );
    }
}

/// Tells other pods of the runs that were yielded last.
async fn tell_of_the_yielded(shared: &Shared) {
    let untold = shared.engine.offers.take_all();
    if !untold.is_for_others() {
        return;
    }
    let why = match tokio::time::timeout(TELL_AT_MOST, herald::tell(&shared.engine, &untold)).await {
        Ok(Ok(())) => return,
        Ok(Err(e)) => e.to_string(),
        Err(_) => format!("no answer within {TELL_AT_MOST:?}"),
    };
    tracing::debug!(
        target: "podlock", event = "untold", pod = %shared.member.pod_id, error = why,
        "pods were not told of the runs yielded last; they look by themselves"
    );
}

/// Records that the stop is complete, so that any pod may remove the row. Without it, a settled pod does.
async fn tell_that_it_stopped(shared: &Shared) {
    let mark = pods::mark_stopped(&shared.engine.db, shared.member.incarnation());
    let why = match tokio::time::timeout(TELL_AT_MOST, mark).await {
        Ok(Ok(true)) => return,
        Ok(Ok(false)) => "its row is gone, or not marked as draining".to_owned(),
        Ok(Err(e)) => e.to_string(),
        Err(_) => format!("no answer within {TELL_AT_MOST:?}"),
    };
    tracing::debug!(
        target: "podlock", event = "stop_unmarked", pod = %shared.member.pod_id, error = why,
        "it could not be recorded that the stop is complete; a settled pod removes the row"
    );
}

async fn wait_for_runs(shared: &Shared, until: Instant) {
    // After the time-out, the remaining runs are aborted or reported.
    let _ = tokio::time::timeout_at(until, shared.engine.registry.emptied()).await;
}

/// Waits for the aborted runs and returns those that did not end. A start or claim in progress does not count, because
/// it begins no task any more.
async fn wait_for_tasks(shared: &Shared, until: Instant) -> Vec<RunId> {
    loop {
        let running = shared.engine.registry.running_ids();
        if running.is_empty() || Instant::now() >= until {
            return running;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Ends the sessions, then everything else.
async fn end(shared: &Shared) {
    shared.member.root.cancel();
    shared.ended.cancelled().await;
    let keeper = shared.keeper().take();
    if let Some(keeper) = keeper
        && keeper.join().is_err()
    {
        tracing::error!(
            target: "podlock", event = "failed", pod = %shared.member.pod_id,
            "the keeper's thread panicked"
        );
    }
    // The pool first: a caller that waits for it gets an error, instead of waiting for a database that may not answer.
    shared.engine.db.close();
    shared.member.tracker.close();
    if tokio::time::timeout(shared.member.settings.statement_timeout, shared.member.tracker.wait()).await.is_err() {
        tracing::warn!(
            target: "podlock", event = "tasks_left", pod = %shared.member.pod_id, tasks = shared.member.tracker.len(),
            "calls that wait for the database were left behind"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn any_time_that_is_given_for_a_stop_has_an_end() {
        for time in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(u64::MAX), Duration::MAX] {
            let until = in_time(time);
            assert!(until >= Instant::now() || time < Duration::from_secs(1), "{time:?}");
            assert!(tokio::time::timeout_at(until.max(Instant::now()), async {}).await.is_ok(), "{time:?}");
        }
    }
}
