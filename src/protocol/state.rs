//! The states of runs and of rows of the roster, as the tables keep them.

use super::names::named;

named! {
    /// The state of a run: `studio_runs.state`.
    #[non_exhaustive]
    pub enum RunState {
        /// It has an owner, or waits for one.
        Running = "running",
        /// Its handler finished it.
        Succeeded = "succeeded",
        /// Its handler, or the pod that could not begin it, ended it with an error.
        Failed = "failed",
        /// Somebody cancelled it.
        Cancelled = "cancelled",
        /// It crashed too many owners in a row (`poison`). A person decides.
        Quarantined = "quarantined",
    }
}

impl RunState {
    /// Whether this is the state that a row names. A name of a newer version is no state of this one.
    #[must_use]
    pub fn is(self, name: &str) -> bool {
        self.as_str() == name
    }
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
    /// Whether this is the state that a row names.
    #[must_use]
    pub fn is(self, name: &str) -> bool {
        self.as_str() == name
    }
}
