//! The kinds of events in the log.

use super::names::named;

named! {
    /// The kind of an event: `studio_pod_events.kind`, in the order of its CHECK.
    #[non_exhaustive]
    pub enum EventKind {
        /// A pod registered.
        Joined = "joined",
        /// A pod began its clean stop.
        Draining = "draining",
        /// A pod lost its liveness session.
        Detached = "detached",
        /// A pod is back under the same incarnation.
        Returned = "returned",
        /// A pod runs and makes no progress.
        Suspected = "suspected",
        /// An operator evicted a pod, or a peer evicted it because it stalled: its row was marked and its sessions were
        /// ended.
        Evicted = "evicted",
        /// A burial waits.
        Held = "held",
        /// A pod was removed from the roster.
        Buried = "buried",
        /// A pod claimed runs.
        Claimed = "claimed",
        /// A run crashed too many owners in a row.
        Quarantined = "quarantined",
        /// The roster as it was when older events were deleted.
        Snapshot = "snapshot",
        /// Runs of a kind failed on a pod.
        RunFailed = "run_failed",
        /// A backend that belongs to no pod holds a lock of a pod, or waits for one.
        ForeignLock = "foreign_lock",
        /// An operator cordoned a pod: it keeps its runs and gets no new ones.
        Cordoned = "cordoned",
        /// An operator lifted the cordon of a pod.
        Uncordoned = "uncordoned",
        /// Workers of a pod were not reported for a while, or never.
        WorkersInactive = "workers_inactive",
        /// Such workers were reported again.
        WorkersActive = "workers_active",
    }
}
