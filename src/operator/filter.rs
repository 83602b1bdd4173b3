//! Filters. Each method narrows the list. A filter that is not set admits everything.

use crate::id::Incarnation;
use crate::operator::RunRow;
use crate::store::queries::RunsWanted;

/// Which pods [`Operator::pods`](super::Operator::pods) returns.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct PodFilter {
    pub(super) state: Option<String>,
    pub(super) alive: Option<bool>,
    pub(super) limit: Option<i64>,
}

impl PodFilter {
    /// All of them.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only those in this state: `active` or `draining`.
    pub fn state(mut self, state: impl Into<String>) -> Self {
        self.state = Some(state.into());
        self
    }

    /// Only pods whose lock is held by their registered backend, or only the others.
    pub fn alive(mut self, alive: bool) -> Self {
        self.alive = Some(alive);
        self
    }

    /// At most this many.
    pub fn limit(mut self, limit: i64) -> Self {
        self.limit = Some(limit.max(0));
        self
    }
}

/// Which runs [`Operator::runs`](super::Operator::runs) returns.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RunFilter {
    pub(super) wanted: RunsWanted,
}

impl RunFilter {
    /// All of them.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only those in this state: `running`, `succeeded`, `failed`, `cancelled` or `quarantined`.
    pub fn state(mut self, state: impl Into<String>) -> Self {
        self.wanted.state = Some(state.into());
        self
    }

    /// Only those of this kind.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.wanted.kind = Some(kind.into());
        self
    }

    /// Only those with this key.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.wanted.key = Some(key.into());
        self
    }

    /// Only those whose last owner had this name.
    pub fn owner(mut self, pod: impl Into<String>) -> Self {
        self.wanted.owner = Some(pod.into());
        self
    }

    /// Only those whose last owner is this incarnation.
    pub fn incarnation(mut self, incarnation: Incarnation) -> Self {
        self.wanted.incarnation = Some(incarnation.as_uuid());
        self
    }

    /// Only orphans: running runs that nobody in the roster owns.
    pub fn orphans(mut self) -> Self {
        self.wanted.orphans = true;
        self
    }

    /// Only orphans of a kind that no pod takes now: no pod of the roster has a handler for it, or all pods that have
    /// one drain or are cordoned.
    pub fn unclaimable(mut self) -> Self {
        self.wanted.unclaimable = true;
        self
    }

    /// Only those after `row` in the list. Use it to read a long list in pages.
    pub fn after(mut self, row: &RunRow) -> Self {
        self.wanted.after = Some((row.created_at, row.run_id.as_uuid()));
        self
    }

    /// At most this many.
    pub fn limit(mut self, limit: i64) -> Self {
        self.wanted.limit = Some(limit.max(0));
        self
    }
}

/// Which events [`Operator::events`](super::Operator::events) and [`Operator::follow`](super::Operator::follow) return.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct EventFilter {
    pub(super) after: Option<i64>,
    pub(super) pod: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) limit: Option<i64>,
}

impl EventFilter {
    /// All of them.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only those after this position.
    pub fn after(mut self, idx: i64) -> Self {
        self.after = Some(idx);
        self
    }

    /// Only those about this pod.
    pub fn pod(mut self, name: impl Into<String>) -> Self {
        self.pod = Some(name.into());
        self
    }

    /// Only those of this kind, as [`EventRow::kind`](super::EventRow::kind) lists them.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = Some(kind.into());
        self
    }

    /// At most this many: the first ones after [`EventFilter::after`] if that is set, or else the newest.
    pub fn limit(mut self, limit: i64) -> Self {
        self.limit = Some(limit.max(0));
        self
    }
}
