//! The runs that failed on this pod, until they are written to the event log.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::id::RunId;
use crate::protocol::failures::{Failed, Tally};

/// The failures of this pod. Each task that ends a run as failed adds to the tally and wakes the part in
/// `super::failures`, which takes from the tally. So does the shutdown, once. `Notify` keeps one wake for a task that
/// does not wait yet, so no wake is lost.
#[derive(Default)]
pub(crate) struct Failures {
    tally: Mutex<Tally>,
    failed: Notify,
}

impl Failures {
    pub(super) fn note(&self, kind: &str, run_id: RunId, error: &str) {
        self.tally().note(kind, run_id, error);
        self.failed.notify_one();
    }

    /// Resolves when there are failures to write.
    ///
    /// Cancel safe.
    pub(super) async fn some(&self) {
        while self.tally().is_empty() {
            self.failed.notified().await;
        }
    }

    pub(super) fn take(&self) -> Vec<Failed> {
        self.tally().take()
    }

    pub(super) fn put_back(&self, failed: Vec<Failed>) {
        self.tally().put_back(failed);
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
