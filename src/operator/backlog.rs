//! The backlog, by kind.

use std::sync::Arc;

use serde::Serialize;

use super::Operator;
use crate::error::Result;
use crate::meters::{self, KINDS_MOST};
use crate::store::backlog::{self, OfKind};

/// How many runs of a kind wait, and the room for them: a row of the view `studio_backlog`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BacklogRow {
    /// The kind.
    pub kind: String,
    /// Its running runs that no pod of the roster owns.
    pub waiting: i64,
    /// Its running runs that a pod of the roster owns.
    pub running: i64,
    /// How many more runs of it the pods have room for. A place that may go to several kinds counts for each of them.
    pub free_capacity: i64,
    /// How many pods take it.
    pub pods: i64,
}

impl Operator {
    /// Returns the backlog of each kind that a running run has or that a pod takes, those with the most waiting runs first.
    /// At most 10,000 kinds.
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`].
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn backlog(&self) -> Result<Vec<BacklogRow>> {
        let row = |OfKind { kind, waiting, running, free_capacity, pods }| BacklogRow {
            kind,
            waiting,
            running,
            free_capacity,
            pods,
        };
        Ok(backlog::backlog(&self.database).await?.into_iter().map(row).collect())
    }

    /// Reads the backlog and sets its metrics (`podlock_backlog_…`), for a process that is no pod. Of more kinds than
    /// [`KINDS_MOST`] it takes those with the most waiting runs. A pod does so by itself
    /// ([`PodBuilder::report_backlog`](crate::PodBuilder::report_backlog)).
    ///
    /// # Errors
    ///
    /// As [`Operator::pods`]. The metrics stay as they are then.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn record_backlog(&self) -> Result<()> {
        for row in self.backlog().await?.into_iter().take(KINDS_MOST) {
            let kind: Arc<str> = row.kind.into();
            for (gauge, value) in [
                (meters::BACKLOG_WAITING, row.waiting),
                (meters::BACKLOG_RUNNING, row.running),
                (meters::BACKLOG_FREE, row.free_capacity),
                (meters::BACKLOG_PODS, row.pods),
            ] {
                meters::gauge_of(gauge, "kind", Arc::clone(&kind), value);
            }
        }
        Ok(())
    }
}
