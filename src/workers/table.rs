//! The copy of all workers that a pod has in memory, and what it must write of its own.
//!
//! One lock guards the table. The table records a worker's origin under this lock before anybody can see the worker, and
//! clears it with the worker. If a registration on this pod races with a removal that another pod published, the
//! registration wins, because both are decided under the lock. Nothing under the lock waits for I/O. Taking a lease does
//! not need it.
//!
//! The race that the epochs solve: a read of the store and a write of this pod overlap, and the read returns a row from
//! before the write. Each write raises the epoch when it ends. A read notes the epoch when it begins. What a read says of
//! a worker of this pod is put in doubt if a write of that worker was under way, or ended after the read began. If the row
//! turns out to be the one that was written, the doubt is over. If not, the row is read once more.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Notify, broadcast};
use uuid::Uuid;

use super::check::HealthCheck;
use super::entry::{Entry, State, Worker};
use super::event::WorkerEvent;
use super::select::Lists;
use super::spec::WorkerSpec;
use crate::id::{Incarnation, PodId, WorkerId, place_of};
use crate::meters;
use crate::protocol::Moment;
use crate::protocol::probing::Counts;
use crate::protocol::reports::{Seen, last_report, looks_needed};
use crate::protocol::worker::{Health, Liveness, Origin, imported_health, precedence};
use crate::store::workers::Reported;

/// How many events wait for a slow receiver before it misses some: 1,024. With fewer, a slow receiver misses more. More
/// only costs memory.
const EVENTS: usize = 1024;
/// How many buried incarnations are remembered, and how many deleted workers, if they were not deleted within the last 16
/// writes: 4,096. With fewer, a read that began before could bring a worker back. More only costs memory.
const REMEMBERED: usize = 4096;

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
    /// After how many looks without a report it is inactive.
    pub(super) needed: u32,
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
    /// `None`: a write has failed, and may have been done all the same, or may be done yet.
    pub(super) mark: Option<i64>,
    /// The epoch in which the write ended.
    pub(super) epoch: u64,
}

#[derive(Default)]
pub(super) struct Inner {
    /// The incarnation that publishes. `None`: nothing was published yet.
    pub(super) own: Option<Incarnation>,
    pub(super) workers: HashMap<WorkerId, Held>,
    /// The workers of each place.
    places: HashMap<Arc<str>, Vec<WorkerId>>,
    /// The imports of each owner.
    pub(super) owners: HashMap<Incarnation, HashSet<WorkerId>>,
    /// Incarnations that were buried, and the epoch then. Reads that began before do not bring their workers back.
    pub(super) gone: BTreeMap<Incarnation, u64>,
    /// Workers of this pod that have changed since they were last written, or were removed, with the number of the change.
    pub(super) dirty: BTreeMap<WorkerId, u64>,
    /// Those that the write under way has.
    pub(super) writing: HashMap<WorkerId, u64>,
    /// The number of the last change.
    pub(super) changes: u64,
    /// The last worker that was tried to write. The next write goes on behind it, so that workers which cannot be written
    /// do not keep the others waiting.
    pub(super) tried: Option<WorkerId>,
    /// The rows of this pod, as far as it knows.
    pub(super) published: HashMap<WorkerId, Written>,
    /// Workers of this pod whose rows it deleted lately, and the epoch then.
    pub(super) deleted: HashMap<WorkerId, u64>,
    pub(super) epoch: u64,
    /// Workers to read once more. Of this pod: a read may have said what was old, with the mark that it showed; `None`: a
    /// removal. Of others: their owner's process was replaced.
    pub(super) doubts: HashMap<WorkerId, Option<i64>>,
    /// The last report of each owner, and the workers that these reports do not include.
    pub(super) reports: BTreeMap<Incarnation, Reported>,
    pub(super) unprobed: HashSet<WorkerId>,
    /// What others wrote or removed of this pod's workers, and was not logged yet: how many, and one of them.
    pub(super) refused: Option<(usize, WorkerId, &'static str)>,
    pub(super) bytes: usize,
}

/// The table.
pub(super) struct Table {
    pub(super) pod: PodId,
    /// How often this pod looks at reports, and how many of an owner's report intervals may pass without one.
    pub(super) every: Duration,
    pub(super) stale_reports: u32,
    /// Whether this pod also probes the workers of other pods.
    pub(super) probes_imports: bool,
    inner: Mutex<Inner>,
    pub(super) lists: Lists,
    /// A worker of this pod has changed. The publisher waits for it, and takes all that has changed: one wake suffices.
    pub(super) to_write: Notify,
    /// The set of workers to probe may have changed. The prober waits for it.
    pub(super) to_probe: Notify,
    pub(super) events: broadcast::Sender<WorkerEvent>,
}

impl Table {
    pub(super) fn new(pod: PodId, every: Duration, stale_reports: u32, probes_imports: bool) -> Self {
        Self {
            pod,
            every,
            stale_reports,
            probes_imports,
            inner: Mutex::default(),
            lists: Lists::default(),
            to_write: Notify::new(),
            to_probe: Notify::new(),
            events: broadcast::channel(EVENTS).0,
        }
    }

    /// After how many of this pod's looks without a report the workers of an owner are inactive. An owner may report more
    /// rarely than this pod looks.
    pub(super) fn needed(&self, owner: Option<Reported>) -> u32 {
        let every = owner.map_or(Duration::ZERO, |reported| reported.every).max(self.every);
        looks_needed(every.saturating_mul(self.stale_reports), self.every)
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

    /// Puts a worker into the table, in place of one with the same id. Nobody sees the place empty meanwhile.
    pub(super) fn put(&self, inner: &mut Inner, mut held: Held) {
        let (id, place, owner) = (held.entry.id, Arc::clone(&held.entry.place), held.entry.owner);
        let is_import = held.entry.origin == Origin::Mesh;
        held.is_shown = inner.workers.get(&id).is_some_and(|former| former.is_shown && former.entry.place == place);
        inner.bytes += held.bytes;
        let former = inner.workers.insert(id, held);
        if let Some(former) = &former {
            inner.bytes -= former.bytes;
            inner.forget_places(id, &former.entry, former.entry.place != place);
        }
        let ids = inner.places.entry(Arc::clone(&place)).or_default();
        if !ids.contains(&id) {
            ids.push(id);
        }
        if is_import {
            inner.owners.entry(owner).or_default().insert(id);
        }
        self.show(inner, &place);
        let Some(former) = former else { return };
        if former.entry.place == place {
            let now = &inner.workers[&id];
            if now.is_shown {
                self.lists.changed();
                self.tell(WorkerEvent::Replaced(Worker(Arc::clone(&now.entry))));
            }
        } else {
            self.went(inner, &former);
        }
        // Last: a list that was made before chooses it until the new one can be chosen.
        former.entry.state.forbid();
    }

    /// Takes a worker out of the table. Its origin goes with it. Returns it.
    pub(super) fn take(&self, inner: &mut Inner, id: WorkerId) -> Option<Held> {
        let held = inner.workers.remove(&id)?;
        held.entry.state.forbid();
        inner.bytes -= held.bytes;
        inner.forget_places(id, &held.entry, true);
        self.went(inner, &held);
        Some(held)
    }

    /// A worker is not at its URL any more. Another one with this URL takes over in the same step.
    fn went(&self, inner: &mut Inner, held: &Held) {
        if held.is_shown {
            self.lists.changed();
            self.tell(WorkerEvent::Removed(Worker(Arc::clone(&held.entry))));
        }
        self.show(inner, &held.entry.place);
    }

    /// Decides which worker of a place is shown, and which of them may be chosen.
    pub(super) fn show(&self, inner: &mut Inner, place: &Arc<str>) {
        let Some(ids) = inner.places.get(place).cloned() else { return };
        let rank = |id: &WorkerId| inner.workers.get(id).map(|held| (held.entry.origin, *id));
        let best = ids.iter().filter_map(rank).min_by(|a, b| precedence(*a, *b)).map(|(_, id)| id);
        for id in ids {
            let Some(held) = inner.workers.get_mut(&id) else { continue };
            let was_shown = std::mem::replace(&mut held.is_shown, best == Some(id));
            // Before anybody is told, so that whoever hears of a worker can choose it.
            held.decide();
            if held.is_shown != was_shown {
                self.lists.changed();
                let worker = Worker(Arc::clone(&held.entry));
                self.tell(if was_shown { WorkerEvent::Removed(worker) } else { WorkerEvent::Added(worker) });
            }
        }
    }

    /// Updates the health and the liveness that the pod shows of a worker, and tells of a change.
    pub(super) fn refresh(&self, held: &mut Held) {
        let state = &held.entry.state;
        let (before, health, liveness) = (state.health(), held.health(), held.liveness());
        state.set_health(health);
        let is_other_liveness = state.set_liveness(liveness);
        held.decide();
        if !held.is_shown {
            return;
        }
        if health != before {
            self.tell(WorkerEvent::Health { worker: Worker(Arc::clone(&held.entry)), before });
        }
        if is_other_liveness {
            metrics::counter!(meters::WORKER_TRANSITIONS, "to" => liveness.as_str()).increment(1);
            let worker = Worker(Arc::clone(&held.entry));
            self.tell(match liveness {
                Liveness::Active => WorkerEvent::Active(worker),
                Liveness::Inactive => WorkerEvent::Inactive(worker),
            });
        }
    }

    /// Marks a worker of this pod as changed.
    pub(super) fn changed(&self, inner: &mut Inner, id: WorkerId) {
        inner.changes += 1;
        let change = inner.changes;
        inner.dirty.insert(id, change);
        self.to_write.notify_one();
    }

    /// A pod was buried: none of its workers is chosen from now on.
    pub(super) fn hide(&self, owner: Incarnation) {
        let mut inner = self.lock();
        inner.epoch += 1;
        let epoch = inner.epoch;
        inner.gone.insert(owner, epoch);
        forget_oldest(&mut inner.gone);
        for id in inner.owners.remove(&owner).unwrap_or_default() {
            self.take(&mut inner, id);
        }
    }
}

impl Inner {
    /// Takes a worker out of the lists of its owner and, with `and_place`, of its place.
    fn forget_places(&mut self, id: WorkerId, entry: &Entry, and_place: bool) {
        if let Some(ids) = self.owners.get_mut(&entry.owner) {
            ids.remove(&id);
            if ids.is_empty() {
                self.owners.remove(&entry.owner);
            }
        }
        if and_place && let Some(ids) = self.places.get_mut(&entry.place) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.places.remove(&entry.place);
            }
        }
    }

    /// Whether what a read says of a worker of this pod may be from before a write of this pod.
    pub(super) fn may_be_old(&self, id: WorkerId, read_epoch: u64) -> bool {
        self.writing.contains_key(&id)
            || self.dirty.contains_key(&id)
            || self.published.get(&id).is_some_and(|written| written.epoch > read_epoch)
            || self.deleted.get(&id).is_some_and(|epoch| *epoch > read_epoch)
    }

    /// The origin of a worker, if the table has it.
    pub(super) fn origin(&self, id: WorkerId) -> Option<Origin> {
        self.workers.get(&id).map(|held| held.entry.origin)
    }

    /// The last report that includes the worker.
    pub(super) fn report_of(&self, held: &Held) -> i64 {
        let owner = self.reports.get(&held.entry.owner).map(|reported| reported.number);
        last_report(held.has_reported, held.since, owner, self.unprobed.contains(&held.entry.id))
    }

    /// The row of a worker of this pod was deleted.
    pub(super) fn note_deleted(&mut self, id: WorkerId) {
        self.published.remove(&id);
        if self.deleted.len() >= REMEMBERED {
            let least = self.epoch.saturating_sub(16);
            self.deleted.retain(|_, epoch| *epoch > least);
        }
        self.deleted.insert(id, self.epoch);
    }

    /// Whether a change up to this one was not written yet.
    pub(super) fn is_pending(&self, upto: u64) -> bool {
        self.dirty.values().chain(self.writing.values()).any(|change| *change <= upto)
    }

    /// Notes what is refused, for one message about all of it.
    pub(super) fn refuse(&mut self, id: WorkerId, what: &'static str) {
        let count = self.refused.map_or(0, |(count, ..)| count);
        self.refused = Some((count + 1, id, what));
    }

    /// Whether every record of the table agrees with the others. Tests ask for it.
    #[cfg(test)]
    pub(super) fn is_consistent(&self) -> bool {
        let placed = |held: &Held| {
            let (id, entry) = (held.entry.id, &held.entry);
            self.places.get(&entry.place).is_some_and(|ids| ids.iter().filter(|other| **other == id).count() == 1)
                && (entry.origin == Origin::Local) != self.owners.get(&entry.owner).is_some_and(|ids| ids.contains(&id))
        };
        let of_places: usize = self.places.values().map(Vec::len).sum();
        let imports = self.workers.values().filter(|held| held.entry.origin == Origin::Mesh).count();
        let of_owners: usize = self.owners.values().map(HashSet::len).sum();
        self.workers.values().all(placed)
            && of_places == self.workers.len()
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

    fn liveness(&self) -> Liveness {
        if self.seen.is_stale(self.needed) { Liveness::Inactive } else { Liveness::Active }
    }

    fn decide(&self) {
        let may_choose = self.is_shown && self.health() == Health::Ready && self.liveness() == Liveness::Active;
        self.entry.state.may_choose.store(may_choose, Ordering::SeqCst);
    }

    /// Sets the first health and liveness of a new worker. Sends no event for them: `Added` follows.
    pub(super) fn begin(&self) {
        self.entry.state.set_health(self.health());
        self.entry.state.set_liveness(self.liveness());
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
    /// A worker that is not shown yet. `former`: the one that it replaces. It goes on counting that one's leases, and shows
    /// its health and liveness until the table refreshes them.
    pub(super) fn held(self, former: Option<&Held>, seen: Seen, needed: u32) -> Held {
        let Self { id, url, origin, owner_pod, owner, spec, undecoded, check, bytes } = self;
        let in_flight = former.map_or_else(|| Arc::new(AtomicU32::new(0)), |f| Arc::clone(&f.entry.in_flight));
        let state = former.map_or_else(State::default, |f| f.entry.state.copy());
        let entry = Arc::new(Entry {
            id,
            place: place_of(&url).into(),
            url,
            origin,
            owner_pod,
            owner,
            spec,
            undecoded,
            check,
            in_flight,
            state,
        });
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
            needed,
            is_shown: false,
            bytes,
        }
    }
}

/// The bucket of a worker, in which its copy is compared with the store.
pub(super) fn bucket(id: Uuid) -> i32 {
    i32::from(id.as_bytes()[0])
}

/// Keeps the newest of what is remembered.
fn forget_oldest(remembered: &mut BTreeMap<Incarnation, u64>) {
    while remembered.len() > REMEMBERED {
        let Some(oldest) = remembered.iter().min_by_key(|(_, epoch)| **epoch).map(|(id, _)| *id) else { return };
        remembered.remove(&oldest);
    }
}
