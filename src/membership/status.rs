//! What a pod says about itself.

use std::fmt;

use serde::Serialize;

use crate::id::{Incarnation, PodId, RunId};

/// The phase of a pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// It holds its lock and takes work.
    Active,
    /// It lost its liveness session and tries to come back; it starts and claims nothing.
    Detached,
    /// It is stopping and takes no more work; what runs goes on.
    Draining,
    /// It has ended.
    Stopped,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Detached => "detached",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        })
    }
}

/// A pod at one moment. Reading it touches no database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PodStatus {
    /// Its name.
    pub pod_id: PodId,
    /// Its present registration; after a burial a new one.
    pub incarnation: Incarnation,
    /// Its phase.
    pub phase: Phase,
    /// Whether it holds its lock, as far as it knows.
    pub attached: bool,
    /// How many runs it runs.
    pub runs: usize,
}

/// Something that happened in the fleet, for the application. A pod that was cut off is told of it when it is back, of its
/// own burial as well. Best effort: a lagging receiver misses some, and so does a pod that comes back after the log was
/// pruned, or after a failover that lost the end of the log. Nothing may depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[non_exhaustive]
pub enum PodEvent {
    /// A pod registered.
    Joined {
        /// Its name.
        pod: PodId,
        /// Its registration.
        incarnation: Incarnation,
    },
    /// A pod was buried.
    Buried {
        /// Its name.
        pod: PodId,
        /// Its registration.
        incarnation: Incarnation,
        /// Why it ended, as `studio_pod_sessions.reason` says it: `lost`, `shutdown`, or how it was evicted.
        reason: String,
    },
    /// A pod runs and gets nowhere: its beats have stopped.
    Suspected {
        /// Its name.
        pod: PodId,
        /// Its registration.
        incarnation: Incarnation,
    },
    /// A pod was put out, by its peers' policy or by an operator: it is buried next.
    Evicted {
        /// Its name.
        pod: PodId,
        /// Its registration.
        incarnation: Incarnation,
    },
    /// A run that takes its owners down with it was quarantined: `podlock runs describe` tells of them.
    Quarantined {
        /// The run.
        run: RunId,
        /// The pod that did it.
        by: PodId,
    },
    /// A pod began its clean stop.
    Draining {
        /// Its name.
        pod: PodId,
        /// Its registration.
        incarnation: Incarnation,
    },
    /// This pod lost its liveness session.
    Detached,
    /// This pod holds its lock again, as the same incarnation.
    Returned,
    /// This pod cancelled its runs, because it had been silent for `self_fence` (L7) or was buried.
    SelfFenced,
}
