//! The registry of the runs that this process executes. It prevents a second begin of the same run, and it can tell
//! each run to stop.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::StopReason;
use super::mobility::Mobility;
use crate::id::{Fence, RunId};
use crate::meters;
use crate::protocol::moves::Mine;
use crate::protocol::{Moment, poison};

/// Tells a run's handler to stop. The reason can only get more severe.
#[derive(Debug, Default)]
pub(crate) struct StopSignal {
    /// Fires for every reason. The handler waits for it.
    token: CancellationToken,
    /// Fires when no write is accepted any more: for every reason except a move and a drain.
    over: CancellationToken,
    /// 0 until somebody tells the run to stop, then the number of the reason plus 1. It only rises. The handler and
    /// every write read it.
    reason: AtomicU8,
}

impl StopSignal {
    pub(crate) fn fire(&self, reason: StopReason) {
        self.reason.fetch_max(reason as u8 + 1, Ordering::AcqRel);
        self.token.cancel();
        if !reason.accepts_writes() {
            self.over.cancel();
        }
    }

    pub(crate) fn reason(&self) -> Option<StopReason> {
        let graver_by_one = usize::from(self.reason.load(Ordering::Acquire));
        graver_by_one.checked_sub(1).and_then(|i| StopReason::ALL.get(i)).copied()
    }

    pub(crate) fn over(&self) -> &CancellationToken {
        &self.over
    }

    pub(crate) fn token(&self) -> &CancellationToken {
        &self.token
    }
}

/// The most lost runs that are remembered, for a count in the log. A pod executes fewer at a time, so the count is
/// right. It only bounds the memory of a pod that loses its runs again and again.
const REMEMBERED_LOSSES: usize = 10_000;

enum RunEntry {
    /// The run is being started or claimed. Its row may or may not exist yet.
    Pending,
    /// The entry exists a moment before its task, so `task` is `None` for that moment.
    Running {
        fence: Fence,
        stop: Arc<StopSignal>,
        task: Option<AbortHandle>,
        /// What a move must know of the attempt. `None`: the run may not move.
        mobility: Option<Arc<Mobility>>,
    },
}

/// A kind with a limit of its own, and how many of its places are taken.
struct Limited {
    most: usize,
    taken: usize,
}

/// The runs, and the counts that belong to them.
struct Entries {
    runs: HashMap<RunId, RunEntry>,
    limited: BTreeMap<Arc<str>, Limited>,
    /// Runs that were suspects when they were claimed. A run leaves this map when it makes progress.
    suspects: BTreeMap<RunId, (Fence, Moment)>,
}

/// What a recovery pass must know before it loads rows.
pub(crate) struct RegistrySnapshot {
    pub(crate) running: BTreeMap<RunId, Fence>,
    pub(crate) pending: BTreeSet<RunId>,
    /// The running runs that were told to stop.
    pub(crate) winding_down: Vec<RunId>,
    pub(crate) room: usize,
    pub(crate) room_of: BTreeMap<Arc<str>, usize>,
}

pub(crate) struct Registry {
    capacity: usize,
    /// Starts, claims and ending tasks write it. The recovery pass and the stop signals read it. Never held across an
    /// await.
    entries: Mutex<Entries>,
    /// `abort_all` sets it when all runs must end. A task that begins later is aborted at once.
    closed: AtomicBool,
    /// Runs that this process released, and when. The recovery pass reads it and leaves them to other pods for a while.
    yielded: Mutex<HashMap<RunId, Moment>>,
    /// Runs that ended here after they were fenced or the pod gave up, since the pod was last attached.
    lost: Mutex<BTreeSet<RunId>>,
    /// Runs that this process could not claim, and when it may try each again.
    aside: Mutex<HashMap<RunId, Moment>>,
    /// The highest fence that this process was ever given. The begin of a run raises it. Starts and claims read it as
    /// the floor of their new fence (L9).
    highest_fence: AtomicI64,
    /// Notified whenever a run leaves. The recovery pass waits for it when it was short of room.
    pub(crate) freed: Notify,
    /// How many runs this process executes. `emptied` waits until it is 0. Who waits for `changes` is woken when a run
    /// comes or leaves.
    count: watch::Sender<usize>,
}

impl Registry {
    /// Makes room for `capacity` runs in all. A kind in `capacity_of` gets at most that number of places.
    pub(crate) fn new(capacity: usize, capacity_of: &BTreeMap<String, usize>) -> Self {
        let limited = |(kind, most): (&String, &usize)| (Arc::from(kind.as_str()), Limited { most: *most, taken: 0 });
        let limited = capacity_of.iter().map(limited).collect();
        Self {
            capacity,
            entries: Mutex::new(Entries { runs: HashMap::new(), limited, suspects: BTreeMap::new() }),
            closed: AtomicBool::new(false),
            yielded: Mutex::default(),
            lost: Mutex::default(),
            aside: Mutex::default(),
            highest_fence: AtomicI64::new(0),
            freed: Notify::new(),
            count: watch::channel(0).0,
        }
    }

    pub(crate) fn highest_fence(&self) -> Fence {
        self.highest_fence.load(Ordering::Acquire).into()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries().runs.len()
    }

    /// Whether there is room for one more run of this kind.
    pub(crate) fn has_room(&self, kind: &str) -> bool {
        self.entries().has_room(self.capacity, kind, 0, 0)
    }

    /// The same beside `others` runs that have no place yet, `of_kind` of them of this kind.
    pub(crate) fn has_room_beside(&self, kind: &str, others: usize, of_kind: usize) -> bool {
        self.entries().has_room(self.capacity, kind, others, of_kind)
    }

    pub(crate) fn snapshot(&self) -> RegistrySnapshot {
        let entries = self.entries();
        let mut running = BTreeMap::new();
        let mut pending = BTreeSet::new();
        let mut winding_down = Vec::new();
        for (run_id, entry) in &entries.runs {
            match entry {
                RunEntry::Running { fence, stop, .. } => {
                    running.insert(*run_id, *fence);
                    winding_down.extend(stop.reason().map(|_| *run_id));
                }
                RunEntry::Pending => _ = pending.insert(*run_id),
            }
        }
        let left = |(kind, of): (&Arc<str>, &Limited)| (Arc::clone(kind), of.most.saturating_sub(of.taken));
        let room_of = entries.limited.iter().map(left).collect();
        RegistrySnapshot {
            running,
            pending,
            winding_down,
            room: self.capacity.saturating_sub(entries.runs.len()),
            room_of,
        }
    }

    /// The suspects that this process executes, as far as it knows. A suspect keeps other runs from beginning.
    pub(crate) fn suspects(&self, now: Moment, lease: Duration) -> BTreeMap<RunId, Fence> {
        let mut entries = self.entries();
        entries.suspects.retain(|_, (_, since)| poison::runs_alone(now.saturating_sub(*since), lease));
        entries.suspects.iter().map(|(run_id, (fence, _))| (*run_id, *fence)).collect()
    }

    /// Records that a suspect has made progress.
    pub(crate) fn clear(&self, run_id: RunId) {
        self.entries().suspects.remove(&run_id);
    }

    /// Reserves a place for a run that is about to be started or claimed. Returns `None` if there is no room, or if
    /// this process already has the run.
    pub(crate) fn reserve(self: &Registry, run_id: RunId, kind: &str) -> Option<Reservation<'_>> {
        let mut entries = self.entries();
        if !entries.has_room(self.capacity, kind, 0, 0) || entries.runs.contains_key(&run_id) {
            return None;
        }
        let limited = entries.limited.get_key_value(kind).map(|(kind, _)| Arc::clone(kind));
        if let Some(of) = limited.as_ref().and_then(|kind| entries.limited.get_mut(kind)) {
            of.taken += 1;
        }
        entries.runs.insert(run_id, RunEntry::Pending);
        self.note_count(entries.runs.len());
        Some(Reservation { registry: self, run_id, limited, suspect: false, kept: false })
    }

    /// The fence of a running run.
    pub(crate) fn fence_of(&self, run_id: RunId) -> Option<Fence> {
        match self.entries().runs.get(&run_id) {
            Some(RunEntry::Running { fence, .. }) => Some(*fence),
            Some(RunEntry::Pending) | None => None,
        }
    }

    pub(crate) fn stop_all(&self, reason: StopReason) -> usize {
        let entries = self.entries();
        let signals = entries.runs.values().filter_map(|entry| match entry {
            RunEntry::Running { stop, .. } => Some(stop),
            RunEntry::Pending => None,
        });
        signals.inspect(|stop| stop.fire(reason)).count()
    }

    /// Returns how many runs this process lost since the pod was last attached, without those that it still has.
    /// Forgets them.
    pub(crate) fn take_lost(&self) -> usize {
        let lost = std::mem::take(&mut *self.lost.lock().unwrap_or_else(PoisonError::into_inner));
        let entries = self.entries();
        lost.iter().filter(|run_id| !entries.runs.contains_key(run_id)).count()
    }

    /// Tells a run to stop. If a fence is given, tells only the attempt with that fence.
    pub(crate) fn stop(&self, run_id: RunId, of: Option<Fence>, reason: StopReason) {
        if let Some(RunEntry::Running { fence, stop, .. }) = self.entries().runs.get(&run_id)
            && of.is_none_or(|of| of == *fence)
        {
            stop.fire(reason);
        }
    }

    /// How many runs this process executes, and those that may move and were not told to stop for another reason.
    pub(crate) fn movable(&self) -> (usize, Vec<Mine>) {
        let entries = self.entries();
        let mine = |(run_id, entry): (&RunId, &RunEntry)| match entry {
            RunEntry::Running { fence, stop, mobility: Some(mobility), .. }
                if stop.reason() <= Some(StopReason::Moving) =>
            {
                Some(Mine {
                    run_id: *run_id,
                    fence: *fence,
                    kind: Arc::clone(&mobility.kind),
                    begun: mobility.begun,
                    saved: mobility.saved.load(Ordering::Acquire),
                    asked: mobility.asked.get().copied(),
                })
            }
            _ => None,
        };
        (entries.runs.len(), entries.runs.iter().filter_map(mine).collect())
    }

    /// Asks an attempt to move.
    pub(crate) fn ask_to_move(&self, run_id: RunId, of: Fence, now: Moment) {
        if let Some(RunEntry::Running { fence, stop, mobility: Some(mobility), .. }) = self.entries().runs.get(&run_id)
            && of == *fence
        {
            // A second request changes nothing.
            let _ = mobility.asked.set(now);
            stop.fire(StopReason::Moving);
        }
    }

    /// The runs that this process executes, each with its fence. A run that is still being started or claimed has no
    /// fence.
    pub(crate) fn known(&self) -> Vec<(RunId, Option<Fence>)> {
        let fence = |entry: &RunEntry| match entry {
            RunEntry::Running { fence, .. } => Some(*fence),
            RunEntry::Pending => None,
        };
        self.entries().runs.iter().map(|(run_id, entry)| (*run_id, fence(entry))).collect()
    }

    /// Aborts the tasks of all runs, and of runs that begin later. A task ends at its next await.
    pub(crate) fn abort_all(&self) -> usize {
        {
            // Under the lock, so that a run that begins now either counts as running or does not begin.
            let _entries = self.entries();
            self.closed.store(true, Ordering::SeqCst);
        }
        let tasks = self.tasks();
        tasks.iter().for_each(AbortHandle::abort);
        tasks.len()
    }

    /// Records that this process released the run at `now`. For a while other pods claim it first.
    pub(crate) fn note_yielded(&self, run_id: RunId, now: Moment) {
        self.yielded.lock().unwrap_or_else(PoisonError::into_inner).insert(run_id, now);
    }

    /// The runs that this process released less than `wait` ago.
    pub(crate) fn yielded_lately(&self, now: Moment, wait: Duration) -> Vec<RunId> {
        let mut yielded = self.yielded.lock().unwrap_or_else(PoisonError::into_inner);
        yielded.retain(|_, at| now.saturating_sub(*at) < wait);
        yielded.keys().copied().collect()
    }

    /// This process does not try to claim the run before `until`.
    pub(crate) fn set_aside(&self, run_id: RunId, until: Moment) {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner).insert(run_id, until);
    }

    /// The runs that are set aside at `now`.
    pub(crate) fn aside(&self, now: Moment) -> Vec<RunId> {
        let mut aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        aside.retain(|_, until| now < *until);
        aside.keys().copied().collect()
    }

    fn tasks(&self) -> Vec<AbortHandle> {
        let task_of = |entry: &RunEntry| match entry {
            RunEntry::Running { task, .. } => task.clone(),
            RunEntry::Pending => None,
        };
        self.entries().runs.values().filter_map(task_of).collect()
    }

    fn remove(&self, run_id: RunId, limited: Option<&str>) {
        let mut entries = self.entries();
        let removed = entries.runs.remove(&run_id);
        if let Some(RunEntry::Running { stop, .. }) = removed
            && stop.reason() >= Some(StopReason::SelfFenced)
        {
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            lost.insert(run_id);
            if lost.len() > REMEMBERED_LOSSES {
                lost.pop_first();
            }
        }
        entries.suspects.remove(&run_id);
        if let Some(of) = limited.and_then(|kind| entries.limited.get_mut(kind)) {
            of.taken = of.taken.saturating_sub(1);
        }
        self.note_count(entries.runs.len());
        drop(entries);
        self.freed.notify_one();
    }

    fn note_count(&self, runs: usize) {
        self.count.send_replace(runs);
        metrics::gauge!(meters::RUNS).set(runs as f64);
    }

    /// Changes when a run comes or leaves.
    pub(crate) fn changes(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Resolves when no run is left.
    pub(crate) async fn emptied(&self) {
        let mut count = self.count.subscribe();
        // The sender is a field of self, so it still exists.
        let _ = count.wait_for(|count| *count == 0).await;
    }

    /// The runs that have a task. Once the registry is closed, no further run gets one.
    pub(crate) fn running_ids(&self) -> Vec<RunId> {
        let entries = self.entries();
        let running = entries.runs.iter().filter(|(_, entry)| matches!(entry, RunEntry::Running { .. }));
        running.map(|(run_id, _)| *run_id).collect()
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn has_room(&self, capacity: usize, kind: &str, others: usize, of_kind: usize) -> bool {
        self.runs.len() + others < capacity && self.limited.get(kind).is_none_or(|of| of.taken + of_kind < of.most)
    }
}

/// A reserved place. It is freed on drop, unless a task took it over.
pub(crate) struct Reservation<'a> {
    registry: &'a Registry,
    run_id: RunId,
    /// The kind, if it has a limit of its own.
    limited: Option<Arc<str>>,
    suspect: bool,
    kept: bool,
}

impl Reservation<'_> {
    /// Marks the run that is about to begin as a suspect.
    pub(crate) fn suspect(mut self) -> Self {
        self.suspect = true;
        self
    }

    /// The slot that the run's task must own.
    pub(crate) fn slot(&self, registry: &Arc<Registry>) -> Slot {
        Slot { registry: Arc::clone(registry), run_id: self.run_id, limited: self.limited.clone() }
    }

    /// Gives the place to the task that `spawn` makes. The task must own a [`Slot`], which frees the place when the
    /// task ends.
    pub(crate) fn begin(
        mut self,
        fence: Fence,
        stop: Arc<StopSignal>,
        mobility: Option<Arc<Mobility>>,
        spawn: impl FnOnce() -> AbortHandle,
    ) {
        let running = |task| RunEntry::Running { fence, stop: Arc::clone(&stop), task, mobility: mobility.clone() };
        let registry = self.registry;
        let mut entries = registry.entries();
        // This check comes before the spawn: a closed registry begins no task.
        if registry.closed.load(Ordering::SeqCst) {
            drop(entries);
            return;
        }
        registry.highest_fence.fetch_max(fence.get(), Ordering::AcqRel);
        self.kept = true;
        entries.runs.insert(self.run_id, running(None));
        if self.suspect {
            entries.suspects.insert(self.run_id, (fence, crate::membership::clock::now()));
        }
        drop(entries);
        // The lock is not held during the spawn. On a runtime that is shutting down, the task is dropped at once and
        // frees its place, which takes the lock.
        let task = spawn();
        let mut entries = self.registry.entries();
        // Changes only its own entry. The task may have ended meanwhile, and the run may have been claimed again.
        if let Some(entry @ RunEntry::Running { task: None, .. }) = entries.runs.get_mut(&self.run_id) {
            *entry = running(Some(task.clone()));
        }
        drop(entries);
        if self.registry.closed.load(Ordering::SeqCst) {
            stop.fire(StopReason::SelfFenced);
            task.abort();
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.registry.remove(self.run_id, self.limited.as_deref());
        }
    }
}

/// A task's place in the registry. Drop frees the place, however the task ends.
pub(crate) struct Slot {
    registry: Arc<Registry>,
    run_id: RunId,
    limited: Option<Arc<str>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.registry.remove(self.run_id, self.limited.as_deref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_reason_only_gets_graver() {
        let signal = StopSignal::default();
        assert_eq!(signal.reason(), None);
        assert!(!signal.token().is_cancelled());
        for reason in [StopReason::Moving, StopReason::Draining, StopReason::Moving] {
            signal.fire(reason);
            assert!(signal.token().is_cancelled() && !signal.over().is_cancelled(), "writes are accepted: {reason}");
        }
        assert_eq!(signal.reason(), Some(StopReason::Draining));
        signal.fire(StopReason::SelfFenced);
        signal.fire(StopReason::Draining);
        assert_eq!(signal.reason(), Some(StopReason::SelfFenced));
        signal.fire(StopReason::Fenced);
        assert_eq!(signal.reason(), Some(StopReason::Fenced));
        assert!(signal.token().is_cancelled());
    }

    #[test]
    fn a_place_is_taken_once_bounded_and_given_back() {
        let registry = Registry::new(2, &BTreeMap::new());
        let (a, b, c) = (RunId::generate(), RunId::generate(), RunId::generate());
        let first = registry.reserve(a, "k").expect("room");
        assert!(registry.reserve(a, "k").is_none(), "this process has it already");
        let second = registry.reserve(b, "k").expect("room");
        assert!(registry.reserve(c, "k").is_none(), "full");
        drop(first);
        assert!(registry.reserve(c, "k").is_some());
        drop(second);
        assert_eq!(registry.len(), 0);
    }

    #[test]
    fn a_kind_with_a_limit_takes_no_more_places_than_that() {
        let registry = Registry::new(3, &BTreeMap::from([("few".to_owned(), 1)]));
        let reserve = |kind| registry.reserve(RunId::generate(), kind);
        let few = reserve("few").expect("room");
        assert!(reserve("few").is_none() && !registry.has_room("few") && registry.has_room("k"));
        let others = (reserve("k").expect("room"), reserve("k").expect("room"));
        drop(few);
        assert_eq!(registry.snapshot().room_of[&Arc::from("few")], 1);
        assert!(reserve("few").is_some());
        let third = reserve("k").expect("room");
        assert!(!registry.has_room("few"), "all kinds together have a limit too");
        drop((others, third));
        assert_eq!(registry.snapshot().room, 3);
    }
}
