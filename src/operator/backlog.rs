//! The backlog, by kind.

use serde::Serialize;

use super::Operator;
use crate::error::Result;
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
}
