//! What the application says of its own progress.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::protocol::stall::Source;

/// Bytes of a source's name that are kept: it goes into the pod's row and into an event.
const NAME_MAX_BYTES: usize = 128;

/// A part of the application that makes progress: a queue's loop, a device, a model.
///
/// At each beat ([`crate::Config::beat_interval`]) the pod shows its peers that it made progress, if anything moved
/// since the last one: a source [`tick`](ProgressSource::tick)ed, or a write of a run was accepted. Without any source,
/// or while all are idle, a runtime that runs tasks is progress enough. A pod that shows none for
/// [`crate::Config::stall_cycles`] looks is suspected.
///
/// A [`required`](ProgressSource::required) source must move itself: while it has something to do and stands still, no
/// other progress counts, and the event `suspected` names it.
///
/// A source is idle until its first tick. Dropped, it is no longer asked about. Cheap to share by reference or `Arc`.
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
    moved: AtomicU64,
    idle: AtomicBool,
    required: AtomicBool,
    /// Written once, before the source can be required; read by the control session when the source stands still.
    name: OnceLock<String>,
}

impl ProgressSource {
    /// Gives it a name for logs and events, of which 128 bytes are kept. The first name stays. Without one it is called
    /// `source N`, by the order in which sources were registered.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        let mut name = name.into();
        // The server's text holds no NUL.
        name.retain(|c| c != '\0');
        while name.len() > NAME_MAX_BYTES {
            name.pop();
        }
        // The first name stays, as documented.
        let _ = self.0.name.set(name);
        self
    }

    /// Makes this source required: while it has something to do and does not tick, the pod makes no progress, even if
    /// other sources move.
    ///
    /// For a part without which the pod is of no use. It alone can make the pod suspect; the event `suspected` and the
    /// log name it.
    #[must_use]
    pub fn required(self) -> Self {
        self.0.required.store(true, Ordering::Release);
        self
    }

    /// It got somewhere, and has something to do.
    pub fn tick(&self) {
        self.0.moved.fetch_add(1, Ordering::AcqRel);
        self.0.idle.store(false, Ordering::Release);
    }

    /// It has nothing to do until its next tick: until then it may stand still.
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

    /// None has anything to do, as far as the pod knows.
    pub(crate) fn idle_all(&self) {
        self.lock().values().filter_map(Weak::upgrade).for_each(|state| state.idle.store(true, Ordering::Release));
    }

    /// How each stands, the dropped ones forgotten.
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

    /// What a source is called.
    pub(crate) fn name(&self, number: u64) -> String {
        let state = self.lock().get(&number).and_then(Weak::upgrade);
        state.and_then(|s| s.name.get().cloned()).unwrap_or_else(|| format!("source {}", number + 1))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Weak<SourceState>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
