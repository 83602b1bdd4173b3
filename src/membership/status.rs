//! A pod's own status.

use std::fmt;

use serde::Serialize;

use crate::id::{Incarnation, PodId, RunId};

/// The phase of a pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// The pod holds its lock and takes work.
    Active,
    /// The pod is cordoned: it holds its lock and keeps its runs, and starts and claims no others.
    Cordoned,
    /// The pod lost its liveness session and tries to come back. It starts and claims nothing.
    Detached,
    /// The pod is shutting down and takes no more work. Its runs go on.
    Draining,
    /// The pod has ended.
    Stopped,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Cordoned => "cordoned",
            Self::Detached => "detached",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        })
    }
}

/// A pod's status at one moment. Reading it does not use the database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PodStatus {
    /// The pod's name.
    pub pod_id: PodId,
    /// The pod's current registration. After a burial it is a new one.
    pub incarnation: Incarnation,
    /// The pod's phase.
    pub phase: Phase,
    /// Whether the pod holds its lock, as far as it knows.
    pub attached: bool,
    /// How many runs the pod executes.
    pub runs: usize,
}

/// An event in the fleet, for the application. A pod that was cut off gets the missed events when it is back, also that
/// of its own burial. Delivery is best effort. A lagging receiver misses some. So does a pod that comes back after the
/// log was pruned, or after a failover that lost the end of the log. Nothing may depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[non_exhaustive]
pub enum PodEvent {
    /// A pod registered.
    Joined {
        /// The pod's name.
        pod: PodId,
        /// The pod's registration.
        incarnation: Incarnation,
    },
    /// A pod was buried.
    Buried {
        /// The pod's name.
        pod: PodId,
        /// The pod's registration.
        incarnation: Incarnation,
        /// Why it ended, as `studio_pod_sessions.reason` says it: `lost`, `shutdown`, or how it was evicted.
        reason: String,
    },
    /// A pod runs but makes no progress: its beats have stopped.
    Suspected {
        /// The pod's name.
        pod: PodId,
        /// The pod's registration.
        incarnation: Incarnation,
    },
    /// A pod was evicted, by its peers' policy or by an operator. It is buried next.
    Evicted {
        /// The pod's name.
        pod: PodId,
        /// The pod's registration.
        incarnation: Incarnation,
    },
    /// A run under which several owners died was quarantined. `podlock runs describe` lists the owners.
    Quarantined {
        /// The run.
        run: RunId,
        /// The pod that quarantined it.
        by: PodId,
    },
    /// A pod began its clean stop.
    Draining {
        /// The pod's name.
        pod: PodId,
        /// The pod's registration.
        incarnation: Incarnation,
    },
    /// An operator cordoned a pod: it keeps its runs and gets no new ones.
    Cordoned {
        /// The pod's name.
        pod: PodId,
        /// The pod's registration.
        incarnation: Incarnation,
    },
    /// An operator lifted a pod's cordon: it gets runs again.
    Uncordoned {
        /// The pod's name.
        pod: PodId,
        /// The pod's registration.
        incarnation: Incarnation,
    },
    /// This pod lost its liveness session.
    Detached,
    /// This pod holds its lock again, as the same incarnation.
    Returned,
    /// This pod cancelled its runs, because it had been silent for `self_fence` (L7) or was buried.
    SelfFenced,
}
