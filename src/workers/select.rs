//! Choosing a worker: a filter, the workers that match it, and a lease on one of them.
//!
//! The workers that match a filter are listed once and kept until a worker comes, goes or is replaced. Whether one of
//! them may be chosen now is in its own atomics. So taking a lease locks nothing and copies no list, and a change of
//! health is seen at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::entry::{Entry, Worker};

/// Which workers to choose from. Without any condition: all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    kind: Option<String>,
    model: Option<String>,
    labels: BTreeMap<String, String>,
}

impl Filter {
    /// All workers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Those of this kind.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = Some(kind.into());
        self
    }

    /// Those of this model.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    /// Those with this label. Several labels must all match.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Whether a worker matches, whatever its health.
    #[must_use]
    pub fn matches(&self, worker: &Worker) -> bool {
        self.matches_entry(&worker.0)
    }

    fn matches_entry(&self, entry: &Entry) -> bool {
        let spec = &entry.spec;
        self.kind.as_ref().is_none_or(|kind| spec.kind.as_ref() == Some(kind))
            && self.model.as_ref().is_none_or(|model| spec.model.as_ref() == Some(model))
            && self.labels.iter().all(|(name, value)| spec.labels.get(name) == Some(value))
    }
}

/// The most filters whose lists are kept: 256. A service with more filters lists again now and then; more cost memory.
const FILTERS: usize = 256;

type List = Arc<[Arc<Entry>]>;

/// The lists of workers by filter. The table raises the version when the shown workers change. The first choice after
/// that makes the lists again.
#[derive(Default)]
pub(super) struct Lists {
    version: AtomicU64,
    made: RwLock<Made>,
}

#[derive(Default)]
struct Made {
    /// The version that the lists are of. 0: none was made.
    version: u64,
    all: List,
    by_filter: HashMap<Filter, List>,
}

impl Lists {
    /// The shown workers have changed. The table calls this under its lock, after the change.
    pub(super) fn changed(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// The workers that match. `shown` lists all shown workers, sorted by id, if that is needed.
    pub(super) fn matching(&self, filter: &Filter, shown: impl FnOnce() -> Vec<Arc<Entry>>) -> Available {
        // Read before the list is made: a change meanwhile makes the list old, never the other way round.
        let version = self.version.load(Ordering::Acquire) + 1;
        {
            let made = self.made.read().unwrap_or_else(PoisonError::into_inner);
            if made.version == version
                && let Some(list) = made.by_filter.get(filter)
            {
                return Available { list: Arc::clone(list) };
            }
        }
        let shown = self.all(version).unwrap_or_else(|| shown().into());
        let list: List = shown.iter().filter(|entry| filter.matches_entry(entry)).cloned().collect();
        let mut made = self.made.write().unwrap_or_else(PoisonError::into_inner);
        if made.version < version {
            *made = Made { version, all: shown, by_filter: HashMap::new() };
        }
        if made.version == version {
            if made.by_filter.len() >= FILTERS {
                made.by_filter.clear();
            }
            made.by_filter.insert(filter.clone(), Arc::clone(&list));
        }
        Available { list }
    }

    fn all(&self, version: u64) -> Option<List> {
        let made = self.made.read().unwrap_or_else(PoisonError::into_inner);
        (made.version == version).then(|| Arc::clone(&made.all))
    }
}

/// The workers that match a filter. Which of them may be chosen is read at each call, so it may change at any time.
#[derive(Clone)]
pub struct Available {
    list: List,
}

impl Available {
    /// The workers that may be chosen now, by id: ready, active, and with room on this pod.
    pub fn iter(&self) -> impl Iterator<Item = Worker> + '_ {
        self.entries().map(|entry| Worker(Arc::clone(entry)))
    }

    fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.list.iter().filter(|entry| entry.is_available())
    }

    /// How many may be chosen now.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entries().count()
    }

    /// Whether none may be chosen now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries().next().is_none()
    }

    /// Takes a lease on the worker with the fewest leases of this pod. Of several such, a random one. `None`: none may be
    /// chosen.
    #[must_use]
    pub fn least_in_flight(&self) -> Option<Lease> {
        loop {
            let from = if self.list.is_empty() { return None } else { fastrand::usize(..self.list.len()) };
            let (before, after) = self.list.split_at(from);
            let turned = after.iter().chain(before).filter(|entry| entry.is_available());
            // The first of several least ones: a random one, because the list begins at a random place.
            let chosen = turned.min_by_key(|entry| entry.in_flight.load(Ordering::Acquire))?;
            if let Some(lease) = Lease::take(chosen) {
                return Some(lease);
            }
        }
    }

    /// Takes a lease on a random worker, each as often as its weight says. `None`: none may be chosen, or all have the
    /// weight 0.
    #[must_use]
    pub fn weighted(&self) -> Option<Lease> {
        loop {
            let total: u64 = self.entries().map(|entry| entry.weight()).sum();
            if total == 0 {
                return None;
            }
            let mut left = fastrand::u64(..total);
            let chosen = self.entries().find(|entry| {
                let weight = entry.weight();
                let is_it = left < weight;
                left = left.saturating_sub(weight);
                is_it
            });
            // If none is found, workers went meanwhile: choose again.
            if let Some(lease) = chosen.and_then(Lease::take) {
                return Some(lease);
            }
        }
    }
}

impl std::fmt::Debug for Available {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A lease on a worker: it counts as in flight on this pod until it is dropped. A worker that drains keeps its leases and
/// gets no new ones.
pub struct Lease {
    entry: Arc<Entry>,
}

impl Lease {
    /// `None`: the worker may not be chosen any more.
    pub(super) fn take(entry: &Arc<Entry>) -> Option<Self> {
        let most = entry.spec.capacity.unwrap_or(u32::MAX);
        let counted = entry.in_flight.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < most).then_some(n + 1));
        let lease = counted.ok().map(|_| Self { entry: Arc::clone(entry) })?;
        // SeqCst: this thread counts the lease and then reads `may_choose`, while the table clears `may_choose` and whoever
        // waits for the leases reads the count. One of the two sees the other, so no lease is given unseen.
        entry.state.may_choose.load(Ordering::SeqCst).then_some(lease)
    }

    /// The worker.
    #[must_use]
    pub fn worker(&self) -> Worker {
        Worker(Arc::clone(&self.entry))
    }

    /// Where the worker is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.entry.url
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.entry.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.worker()).finish()
    }
}
