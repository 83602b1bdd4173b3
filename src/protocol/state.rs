//! The states of runs and of rows of the roster, as the tables keep them, and what a cancellation does to a run.

use super::names::named;

named! {
    /// The state of a run: `studio_runs.state`.
    #[non_exhaustive]
    pub enum RunState {
        /// It has an owner, or waits for an owner.
        Running = "running",
        /// Its handler finished it.
        Succeeded = "succeeded",
        /// Its handler ended it with an error, or a pod could not begin it.
        Failed = "failed",
        /// Somebody cancelled it.
        Cancelled = "cancelled",
        /// It crashed too many owners in a row (`poison`). A person decides.
        Quarantined = "quarantined",
    }
}

impl RunState {
    /// Whether `name`, from a row, is this state. A newer version's name is no state of this version.
    #[must_use]
    pub fn is(self, name: &str) -> bool {
        self.as_str() == name
    }
}

/// The result of a cancellation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cancelled {
    /// This call cancelled the run. Its owner, if there is one, was notified.
    Now,
    /// The run had ended before, in this state.
    AlreadyEnded {
        /// `succeeded`, `failed`, `cancelled` or `quarantined`.
        state: String,
    },
    /// There is no such run.
    NotFound,
}

named! {
    /// The state of a row of the roster: `studio_pods.state`.
    #[non_exhaustive]
    pub enum PodState {
        /// It takes work.
        Active = "active",
        /// It has begun its clean stop.
        Draining = "draining",
    }
}

impl PodState {
    /// Whether `name`, from a row, is this state.
    #[must_use]
    pub fn is(self, name: &str) -> bool {
        self.as_str() == name
    }
}
