//! Progress that the application reports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::protocol::stall::Source;

/// How many bytes of a source's name are kept. The name goes into the pod's row and into an event, which pods read
/// often.
const NAME_MAX_BYTES: usize = 128;

/// A part of the application that makes progress: a queue's loop, a device, a model.
///
/// At each beat ([`crate::Config::beat_interval`]) the pod shows its peers whether it made progress since the last
/// beat. It did if a source [`tick`](ProgressSource::tick)ed, or if a write of a run was accepted. If there is no
/// source, or all are idle, a runtime that runs tasks counts as progress. A pod that shows none at
/// [`crate::Config::stall_cycles`] probes is suspected.
///
/// A [`required`](ProgressSource::required) source must tick itself. While it has work and does not tick, no other
/// progress counts, and the event `suspected` names it.
///
/// A source is idle until its first tick. A dropped source no longer counts. Cheap to share by reference or `Arc`.
///
/// ```no_run
/// # fn example(pod: &podlock::Pod) {
/// let queue = pod.progress_source().named("queue").required();
/// queue.tick(); // it took a message, and goes on
/// queue.idle(); // the queue is empty
/// # }
/// ```
#[derive(Debug)]
pub struct ProgressSource(Arc<SourceState>);

#[derive(Debug)]
struct SourceState {
    /// Each tick increments it. The sweep reads it at a beat.
    moved: AtomicU64,
    /// The source has no work. The source sets and clears it. The keeper sets it while an evicted pod has stayed away
    /// for long.
    idle: AtomicBool,
    required: AtomicBool,
    /// Written once, before the source can be required. The control session reads it when the source makes no progress.
    name: OnceLock<String>,
}

impl ProgressSource {
    /// Gives the source a name for logs and events. 128 bytes of it are kept. A later name is ignored. A source without
    /// a name is called `source N`, in the order of registration.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        let mut name = name.into();
        // PostgreSQL's text cannot hold a NUL.
        name.retain(|c| c != '\0');
        while name.len() > NAME_MAX_BYTES {
            name.pop();
        }
        // The first name stays, as documented.
        let _ = self.0.name.set(name);
        self
    }

    /// Makes this source required. While it has work and does not tick, the pod makes no progress, even if other
    /// sources tick.
    ///
    /// Use it for a part without which the pod is useless. This source alone can make the pod suspect. The event
    /// `suspected` and the log name it then.
    #[must_use]
    pub fn required(self) -> Self {
        self.0.required.store(true, Ordering::Release);
        self
    }

    /// Reports progress. The source has more work to do.
    pub fn tick(&self) {
        self.0.moved.fetch_add(1, Ordering::AcqRel);
        self.0.idle.store(false, Ordering::Release);
    }

    /// Reports that the source has no work until its next tick. Until then it need not tick.
    pub fn idle(&self) {
        self.0.idle.store(true, Ordering::Release);
    }
}

/// The sources of one pod.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    next: AtomicU64,
    all: Mutex<BTreeMap<u64, Weak<SourceState>>>,
}

impl Sources {
    pub(crate) fn register(&self) -> ProgressSource {
        let (moved, idle, required) = (AtomicU64::new(0), AtomicBool::new(true), AtomicBool::new(false));
        let state = Arc::new(SourceState { moved, idle, required, name: OnceLock::new() });
        let number = self.next.fetch_add(1, Ordering::AcqRel);
        self.lock().insert(number, Arc::downgrade(&state));
        ProgressSource(state)
    }

    /// Marks every source as idle: none has work, as far as the pod knows.
    pub(crate) fn idle_all(&self) {
        self.lock().values().filter_map(Weak::upgrade).for_each(|state| state.idle.store(true, Ordering::Release));
    }

    /// The state of each source. Forgets dropped sources.
    pub(crate) fn read(&self) -> BTreeMap<u64, Source> {
        let mut all = self.lock();
        all.retain(|_, state| state.strong_count() > 0);
        let live = all.iter().filter_map(|(number, state)| Some((*number, state.upgrade()?)));
        live.map(|(number, state)| {
            let (moved, idle) = (state.moved.load(Ordering::Acquire), state.idle.load(Ordering::Acquire));
            (number, Source { moved, idle, required: state.required.load(Ordering::Acquire) })
        })
        .collect()
    }

    /// The source's name.
    pub(crate) fn name(&self, number: u64) -> String {
        let state = self.lock().get(&number).and_then(Weak::upgrade);
        state.and_then(|s| s.name.get().cloned()).unwrap_or_else(|| format!("source {}", number + 1))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Weak<SourceState>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
