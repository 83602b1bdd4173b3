//! One worker, as this pod shows it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::check::HealthCheck;
use super::spec::WorkerSpec;
use crate::id::{Incarnation, PodId, WorkerId};
use crate::protocol::worker::{Health, Liveness, Origin};
use crate::timestamp::Timestamp;

/// What is the same for as long as a worker is not replaced, and what changes. The table writes the atomics, under its
/// lock; whoever selects reads them without one.
pub(super) struct Entry {
    pub(super) id: WorkerId,
    pub(super) url: Arc<str>,
    /// What the URL names, however it is written. Of the workers of one place, one is shown.
    pub(super) place: Arc<str>,
    pub(super) origin: Origin,
    pub(super) owner_pod: PodId,
    pub(super) owner: Incarnation,
    pub(super) spec: Arc<WorkerSpec>,
    /// The spec as the store has it, if it does not decode.
    pub(super) undecoded: Option<Value>,
    pub(super) check: Option<Arc<HealthCheck>>,
    /// Leases on this pod. An entry that replaces another one shares its count.
    pub(super) in_flight: Arc<AtomicU32>,
    pub(super) state: State,
}

/// What changes of a worker. A reader may see one change before another: each is a fact of its own.
pub(super) struct State {
    /// The place of the health in [`Health::ALL`].
    health: AtomicU8,
    is_inactive: AtomicBool,
    /// Held for a copy only. Nobody chooses by it.
    reported_at: Mutex<Option<Timestamp>>,
    /// Whether the worker may be chosen, as far as its health, its liveness and its place in the table say. A removed
    /// worker may not, so whoever holds it from before does not choose it either.
    pub(super) may_choose: AtomicBool,
}

impl Default for State {
    /// Pending, inactive, never reported.
    fn default() -> Self {
        Self {
            health: AtomicU8::new(0),
            is_inactive: AtomicBool::new(true),
            reported_at: Mutex::default(),
            may_choose: AtomicBool::new(false),
        }
    }
}

impl State {
    /// The same, for the worker that takes the place of this one. It may not be chosen yet.
    pub(super) fn copy(&self) -> Self {
        let state = Self::default();
        state.set_health(self.health());
        state.set_liveness(self.liveness());
        state.set_reported(self.reported_at());
        state
    }

    /// The worker is no longer chosen.
    pub(super) fn forbid(&self) {
        self.may_choose.store(false, Ordering::SeqCst);
    }

    pub(super) fn health(&self) -> Health {
        Health::ALL.get(usize::from(self.health.load(Ordering::Acquire))).copied().unwrap_or(Health::NotReady)
    }

    pub(super) fn set_health(&self, health: Health) {
        let place = Health::ALL.iter().position(|known| *known == health).and_then(|place| u8::try_from(place).ok());
        self.health.store(place.unwrap_or(u8::MAX), Ordering::Release);
    }

    pub(super) fn liveness(&self) -> Liveness {
        if self.is_inactive.load(Ordering::Acquire) { Liveness::Inactive } else { Liveness::Active }
    }

    /// Returns true if that is new.
    pub(super) fn set_liveness(&self, liveness: Liveness) -> bool {
        let is_inactive = liveness == Liveness::Inactive;
        self.is_inactive.swap(is_inactive, Ordering::AcqRel) != is_inactive
    }

    fn reported_at(&self) -> Option<Timestamp> {
        *self.reported_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_reported(&self, at: Option<Timestamp>) {
        *self.reported_at.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

impl Entry {
    /// Whether the worker may be chosen now: it is ready, active, and has room on this pod.
    pub(super) fn is_available(&self) -> bool {
        self.state.may_choose.load(Ordering::SeqCst) && self.has_room()
    }

    fn has_room(&self) -> bool {
        self.spec.capacity.is_none_or(|most| self.in_flight.load(Ordering::Acquire) < most)
    }

    pub(super) fn weight(&self) -> u64 {
        u64::from(self.spec.weight.unwrap_or(1))
    }
}

/// A worker of the fleet, as this pod shows it. A handle: cheap to clone, and reading it uses no database. Its health and
/// liveness may change at any time.
///
/// As JSON: `worker_id`, `url`, `origin`, `owner_pod`, `owner_incarnation`, `health`, `liveness`, `reported_at`, `spec`,
/// `health_check`.
#[derive(Clone)]
pub struct Worker(pub(super) Arc<Entry>);

impl Worker {
    /// The worker's id.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        self.0.id
    }

    /// Where the worker is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// Whether this pod registered it.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.0.origin
    }

    /// The name of the pod that registered it.
    #[must_use]
    pub fn owner_pod(&self) -> &PodId {
        &self.0.owner_pod
    }

    /// The registration of that pod.
    #[must_use]
    pub fn owner_incarnation(&self) -> Incarnation {
        self.0.owner
    }

    /// The worker's health now.
    #[must_use]
    pub fn health(&self) -> Health {
        self.0.state.health()
    }

    /// Whether the owner still reports the worker.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        self.0.state.liveness()
    }

    /// When the owner last reported it, by the server's clock, as far as this pod has read. For people only.
    #[must_use]
    pub fn reported_at(&self) -> Option<Timestamp> {
        self.0.state.reported_at()
    }

    /// What the owner says of it. Empty if the spec does not decode; such a worker is not ready.
    #[must_use]
    pub fn spec(&self) -> &WorkerSpec {
        &self.0.spec
    }

    /// How the owner probes it. `None`: it does not.
    #[must_use]
    pub fn health_check(&self) -> Option<&HealthCheck> {
        self.0.check.as_deref()
    }

    /// How many leases this pod has on it.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.0.in_flight.load(Ordering::Acquire)
    }

    /// Whether it may be chosen now.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.0.is_available()
    }

    /// The labels of its spec.
    #[must_use]
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.0.spec.labels
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("id", &self.0.id)
            .field("url", &self.0.url)
            .field("origin", &self.origin())
            .field("owner_pod", &self.0.owner_pod)
            .field("health", &self.health())
            .field("liveness", &self.liveness())
            .finish_non_exhaustive()
    }
}

impl Serialize for Worker {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entry = &self.0;
        let mut fields = serializer.serialize_struct("Worker", 10)?;
        fields.serialize_field("worker_id", &entry.id)?;
        fields.serialize_field("url", &*entry.url)?;
        fields.serialize_field("origin", entry.origin.as_str())?;
        fields.serialize_field("owner_pod", &entry.owner_pod)?;
        fields.serialize_field("owner_incarnation", &entry.owner)?;
        fields.serialize_field("health", self.health().as_str())?;
        fields.serialize_field("liveness", self.liveness().as_str())?;
        fields.serialize_field("reported_at", &self.reported_at())?;
        match &entry.undecoded {
            Some(raw) => fields.serialize_field("spec", raw)?,
            None => fields.serialize_field("spec", &*entry.spec)?,
        }
        fields.serialize_field("health_check", &entry.check.as_deref())?;
        fields.end()
    }
}
