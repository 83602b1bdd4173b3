//! The copy of all workers that a pod has in memory, and what it must write of its own.
//!
//! One lock guards the table. A worker's origin is recorded under it before the worker can be seen, and cleared with the
//! worker. A local claim and a remote removal that race both decide under it, so the claim wins. Nothing under the lock
//! waits for I/O. Whoever chooses a worker does not take it.
//!
//! The race that the epochs solve: a read of the store and a write of this pod overlap, and the read returns a row from
//! before the write. Each write raises the epoch when it ends. A read notes the epoch when it begins. What a read says of
//! a worker of this pod is put in doubt if a write of that worker was under way, or ended after the read began. If the row
//! turns out to be the one that was written, the doubt is over. If not, the row is read once more.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::{Notify, broadcast};
use uuid::Uuid;

use super::check::HealthCheck;
use super::entry::{Entry, State, Worker};
use super::event::WorkerEvent;
use super::select::Lists;
use super::spec::WorkerSpec;
use crate::id::{Incarnation, PodId, WorkerId};
use crate::protocol::Moment;
use crate::protocol::probing::Counts;
use crate::protocol::reports::{Seen, last_report};
use crate::protocol::worker::{Health, Liveness, Origin, imported_health, precedence};

/// How many events wait for a slow receiver before it misses some. More only costs memory.
const EVENTS: usize = 1024;
/// How many buried incarnations are remembered, so that a read from before the burial does not bring their workers back.
/// Far fewer are buried within the time of a read.
const GONE: usize = 4096;

/// A worker of the table.
pub(super) struct Held {
    pub(super) entry: Arc<Entry>,
    /// Of an import: the mark of the row that it was read from.
    pub(super) mark: i64,
    /// Of an import: the health that its owner published. `None`: a name that this version does not know.
    pub(super) hint: Option<Health>,
    /// The verdict of this pod's own probe. `None`: this pod does not probe the worker.
    pub(super) own: Option<Health>,
    pub(super) probes: Probes,
    /// Whether its own row reports it, and after which report of its owner the row was written.
    pub(super) has_reported: bool,
    pub(super) since: i64,
    pub(super) seen: Seen,
    /// The liveness in the store, as far as this pod knows.
    pub(super) stored: Liveness,
    is_shown: bool,
    /// The size of its spec as JSON text.
    pub(super) bytes: usize,
}

/// What this pod's own probes of a worker have shown.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Probes {
    pub(super) counts: Counts,
    /// When the last one ended.
    pub(super) last: Option<Moment>,
}

/// A row that this pod wrote.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) mark: i64,
    /// The epoch in which the write ended.
    pub(super) epoch: u64,
}

#[derive(Default)]
pub(super) struct Inner {
    /// The incarnation that publishes. `None`: nothing was published yet.
    pub(super) own: Option<Incarnation>,
    pub(super) workers: HashMap<WorkerId, Held>,
    urls: HashMap<Arc<str>, Vec<WorkerId>>,
    /// The imports of each owner.
    pub(super) owners: HashMap<Incarnation, HashSet<WorkerId>>,
    pub(super) gone: BTreeSet<Incarnation>,
    /// Workers of this pod that have changed since they were last written, or were removed.
    pub(super) dirty: BTreeSet<WorkerId>,
    /// Those that the write under way has.
    pub(super) writing: HashSet<WorkerId>,
    /// The rows of this pod, as far as it knows.
    pub(super) published: HashMap<WorkerId, Written>,
    pub(super) epoch: u64,
    /// Workers of this pod of which a read may have said what was old, with the mark that it showed; `None`: a removal.
    pub(super) doubts: HashMap<WorkerId, Option<i64>>,
    /// The last report of each owner, and the workers that these reports do not include.
    pub(super) reports: BTreeMap<Incarnation, i64>,
    pub(super) unprobed: HashSet<WorkerId>,
    pub(super) bytes: usize,
}

/// The table.
pub(super) struct Table {
    pub(super) pod: PodId,
    /// How many looks without a report make a worker inactive.
    pub(super) looks_needed: u32,
    inner: Mutex<Inner>,
    pub(super) lists: Lists,
    /// A worker of this pod has changed. The publisher waits for it, and takes all that has changed: one wake suffices.
    pub(super) to_write: Notify,
    /// The set of workers to probe may have changed. The prober waits for it.
    pub(super) to_probe: Notify,
    pub(super) events: broadcast::Sender<WorkerEvent>,
}

impl Table {
    pub(super) fn new(pod: PodId, looks_needed: u32) -> Self {
        Self {
            pod,
            looks_needed,
            inner: Mutex::default(),
            lists: Lists::default(),
            to_write: Notify::new(),
            to_probe: Notify::new(),
            events: broadcast::channel(EVENTS).0,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tell(&self, event: WorkerEvent) {
        // It does not matter if nobody listens.
        let _ = self.events.send(event);
    }

    /// The worker with this id, if it is shown.
    pub(super) fn get(&self, id: WorkerId) -> Option<Worker> {
        self.lock().workers.get(&id).filter(|held| held.is_shown).map(|held| Worker(Arc::clone(&held.entry)))
    }

    /// All workers that are shown, by id.
    pub(super) fn shown(&self) -> Vec<Arc<Entry>> {
        let inner = self.lock();
        let mut shown: Vec<_> =
            inner.workers.values().filter(|held| held.is_shown).map(|held| Arc::clone(&held.entry)).collect();
        drop(inner);
        shown.sort_unstable_by_key(|entry| entry.id);
        shown
    }

    /// Puts a worker into the table, in place of one with the same id.
    pub(super) fn put(&self, inner: &mut Inner, held: Held) {
        let (id, url, owner) = (held.entry.id, Arc::clone(&held.entry.url), held.entry.owner);
        let is_import = held.entry.origin == Origin::Mesh;
        inner.bytes += held.bytes;
        let former = inner.workers.insert(id, held);
        if let Some(former) = &former {
            inner.bytes -= former.bytes;
            former.entry.state.may_choose.store(false, Ordering::Release);
            // A worker that is replaced stays where it is: nobody sees it gone.
            if let Some(now) = inner.workers.get_mut(&id) {
                now.is_shown = former.is_shown;
            }
            inner.forget_places(id, &former.entry, (former.entry.url != url).then_some(()));
        }
        let ids = inner.urls.entry(Arc::clone(&url)).or_default();
        if !ids.contains(&id) {
            ids.push(id);
        }
        if is_import {
            inner.owners.entry(owner).or_default().insert(id);
        }
        self.show(inner, &url);
        if let Some(former) = former {
            if former.entry.url != url {
                self.show(inner, &former.entry.url);
            }
            let now = &inner.workers[&id];
            if now.is_shown {
                self.lists.changed();
                self.tell(WorkerEvent::Replaced(Worker(Arc::clone(&now.entry))));
            }
        }
    }

    /// Takes a worker out of the table. Its origin goes with it. Returns it.
    pub(super) fn take(&self, inner: &mut Inner, id: WorkerId) -> Option<Held> {
        let held = inner.workers.remove(&id)?;
        held.entry.state.may_choose.store(false, Ordering::Release);
        inner.bytes -= held.bytes;
        let url = Arc::clone(&held.entry.url);
        inner.forget_places(id, &held.entry, Some(()));
        if held.is_shown {
            self.lists.changed();
            self.tell(WorkerEvent::Removed(Worker(Arc::clone(&held.entry))));
        }
        // Another worker with the same URL takes over in the same step.
        self.show(inner, &url);
        Some(held)
    }

    /// Decides which worker of a URL is shown, and which of them may be chosen.
    pub(super) fn show(&self, inner: &mut Inner, url: &Arc<str>) {
        let Some(ids) = inner.urls.get(url).cloned() else { return };
        let rank = |id: &WorkerId| inner.workers.get(id).map(|held| (held.entry.origin, *id));
        let best = ids.iter().filter_map(rank).min_by(|a, b| precedence(*a, *b)).map(|(_, id)| id);
        for id in ids {
            let Some(held) = inner.workers.get_mut(&id) else { continue };
            let is_shown = best == Some(id);
            if std::mem::replace(&mut held.is_shown, is_shown) != is_shown {
                self.lists.changed();
                let worker = Worker(Arc::clone(&held.entry));
                self.tell(if is_shown { WorkerEvent::Added(worker) } else { WorkerEvent::Removed(worker) });
            }
            held.decide(self.looks_needed);
        }
    }

    /// Updates the health and the liveness that the pod shows of a worker, and tells of a change.
    pub(super) fn refresh(&self, held: &mut Held) {
        let state = &held.entry.state;
        let before = state.health();
        let health = held.health();
        if health != before {
            state.set_health(health);
            if held.is_shown {
                self.tell(WorkerEvent::Health { worker: Worker(Arc::clone(&held.entry)), before });
            }
        }
        let liveness = held.liveness(self.looks_needed);
        if state.set_liveness(liveness) && held.is_shown {
            metrics::counter!("podlock_worker_transitions_total", "to" => liveness.as_str()).increment(1);
            let worker = Worker(Arc::clone(&held.entry));
            self.tell(match liveness {
                Liveness::Active => WorkerEvent::Active(worker),
                Liveness::Inactive => WorkerEvent::Inactive(worker),
            });
        }
        held.decide(self.looks_needed);
    }

    /// Marks a worker of this pod as changed.
    pub(super) fn changed(&self, inner: &mut Inner, id: WorkerId) {
        inner.dirty.insert(id);
        self.to_write.notify_one();
    }

    /// A pod was buried: none of its workers is chosen from now on.
    pub(super) fn hide(&self, owner: Incarnation) {
        let mut inner = self.lock();
        inner.gone.insert(owner);
        while inner.gone.len() > GONE {
            inner.gone.pop_first();
        }
        for id in inner.owners.remove(&owner).unwrap_or_default() {
            self.take(&mut inner, id);
        }
    }
}

impl Inner {
    /// Takes a worker out of the lists of its owner and, with `and_url`, of its URL.
    fn forget_places(&mut self, id: WorkerId, entry: &Entry, and_url: Option<()>) {
        if let Some(ids) = self.owners.get_mut(&entry.owner) {
            ids.remove(&id);
            if ids.is_empty() {
                self.owners.remove(&entry.owner);
            }
        }
        if and_url.is_some()
            && let Some(ids) = self.urls.get_mut(&entry.url)
        {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.urls.remove(&entry.url);
            }
        }
    }

    /// Whether what a read says of a worker of this pod may be from before a write of this pod.
    pub(super) fn may_be_old(&self, id: WorkerId, read_epoch: u64) -> bool {
        self.writing.contains(&id)
            || self.dirty.contains(&id)
            || self.published.get(&id).is_some_and(|written| written.epoch > read_epoch)
    }

    /// The origin of a worker, if the table has it.
    pub(super) fn origin(&self, id: WorkerId) -> Option<Origin> {
        self.workers.get(&id).map(|held| held.entry.origin)
    }

    /// The last report that includes the worker.
    pub(super) fn report_of(&self, held: &Held) -> i64 {
        let owner = self.reports.get(&held.entry.owner).copied();
        last_report(held.has_reported, held.since, owner, self.unprobed.contains(&held.entry.id))
    }

    /// Whether every record of the table agrees with the others. Tests ask for it.
    #[cfg(test)]
    pub(super) fn is_consistent(&self) -> bool {
        let placed = |held: &Held| {
            let (id, entry) = (held.entry.id, &held.entry);
            self.urls.get(&entry.url).is_some_and(|ids| ids.iter().filter(|other| **other == id).count() == 1)
                && (entry.origin == Origin::Local) != self.owners.get(&entry.owner).is_some_and(|ids| ids.contains(&id))
        };
        let of_urls: usize = self.urls.values().map(Vec::len).sum();
        let imports = self.workers.values().filter(|held| held.entry.origin == Origin::Mesh).count();
        let of_owners: usize = self.owners.values().map(HashSet::len).sum();
        self.workers.values().all(placed)
            && of_urls == self.workers.len()
            && of_owners == imports
            && self.bytes == self.workers.values().map(|held| held.bytes).sum::<usize>()
    }
}

impl Held {
    /// The health that the pod shows.
    pub(super) fn health(&self) -> Health {
        match self.entry.origin {
            _ if self.entry.undecoded.is_some() => Health::NotReady,
            Origin::Local => self.own.unwrap_or(Health::Pending),
            Origin::Mesh => imported_health(self.own, self.hint),
        }
    }

    fn liveness(&self, needed: u32) -> Liveness {
        if self.seen.is_stale(needed) { Liveness::Inactive } else { Liveness::Active }
    }

    fn decide(&self, needed: u32) {
        let may_choose = self.is_shown && self.health() == Health::Ready && self.liveness(needed) == Liveness::Active;
        self.entry.state.may_choose.store(may_choose, Ordering::Release);
    }
}

/// The parts of a new [`Held`].
pub(super) struct Parts {
    pub(super) id: WorkerId,
    pub(super) url: Arc<str>,
    pub(super) origin: Origin,
    pub(super) owner_pod: PodId,
    pub(super) owner: Incarnation,
    pub(super) spec: Arc<WorkerSpec>,
    pub(super) undecoded: Option<Value>,
    pub(super) check: Option<Arc<HealthCheck>>,
    pub(super) bytes: usize,
}

impl Parts {
    /// A worker that is not shown yet. `former`: the one that it replaces, whose leases it goes on counting.
    pub(super) fn held(self, former: Option<&Held>, seen: Seen) -> Held {
        let Self { id, url, origin, owner_pod, owner, spec, undecoded, check, bytes } = self;
        let in_flight = former.map_or_else(|| Arc::new(AtomicU32::new(0)), |f| Arc::clone(&f.entry.in_flight));
        let state = State::new(Health::Pending, Liveness::Inactive, None);
        let entry = Arc::new(Entry { id, url, origin, owner_pod, owner, spec, undecoded, check, in_flight, state });
        Held {
            entry,
            mark: 0,
            hint: None,
            own: None,
            probes: Probes::default(),
            has_reported: false,
            since: 0,
            seen,
            stored: Liveness::Inactive,
            is_shown: false,
            bytes,
        }
    }
}

/// The bucket of a worker, in which its copy is compared with the store.
pub(super) fn bucket(id: Uuid) -> i32 {
    i32::from(id.as_bytes()[0])
}
