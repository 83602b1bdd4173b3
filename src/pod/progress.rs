//! What the application says of its own progress.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::protocol::stall::Source;

/// A part of the application whose standing still means that this pod gets nowhere: a queue's loop, a device, a model.
///
/// At each beat ([`crate::Config::beat_interval`]) the pod shows its peers that it made progress, unless a source that
/// has something to do did not [`tick`](ProgressSource::tick) since the last one. A pod that shows none for
/// [`crate::Config::stall_cycles`] looks is suspected. Without any source, a runtime that runs tasks is progress enough.
///
/// A source is idle until its first tick. Dropped, it is no longer asked about. Cheap to share by reference or `Arc`.
#[derive(Debug)]
pub struct ProgressSource(Arc<State>);

#[derive(Debug)]
struct State {
    moved: AtomicU64,
    idle: AtomicBool,
}

impl ProgressSource {
    /// It got somewhere, and has something to do.
    pub fn tick(&self) {
        self.0.moved.fetch_add(1, Ordering::AcqRel);
        self.0.idle.store(false, Ordering::Release);
    }

    /// It has nothing to do until its next tick: standing still is no fault of it.
    pub fn idle(&self) {
        self.0.idle.store(true, Ordering::Release);
    }
}

/// The sources of one pod.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    next: AtomicU64,
    all: Mutex<BTreeMap<u64, Weak<State>>>,
}

impl Sources {
    pub(crate) fn register(&self) -> ProgressSource {
        let state = Arc::new(State { moved: AtomicU64::new(0), idle: AtomicBool::new(true) });
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
            (number, Source { moved, idle })
        })
        .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Weak<State>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
