//! The engine of runs: everything that the parts of `runs` share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Mutex, Notify, mpsc};

use super::failures::Failures;
use super::recover::Loaded;
use super::registry::Registry;
use super::stream::flush::Flusher;
use super::stream::readers::Readers;
use super::{Handler, StopReason};
use crate::id::{Fence, RunId};
use crate::membership::Membership;
use crate::pg::pool::Database;

pub(crate) struct Engine {
    pub(crate) member: Arc<Membership>,
    pub(crate) db: Database,
    pub(crate) handlers: HashMap<String, Arc<dyn Handler>>,
    /// The runs of this process.
    pub(crate) registry: Registry,
    /// Stores the chunks that the runs append to their streams.
    pub(crate) flusher: Flusher,
    /// The readers that are attached to streams on this pod.
    pub(crate) readers: Readers,
    /// Runs that failed here, until the event log tells of them.
    pub(crate) failures: Failures,
    /// Makes the next recovery pass come now.
    pub(crate) recover_now: Notify,
    /// A notice says that there are orphans: the next recovery pass comes soon, within bounds (L11).
    pub(crate) recover_hinted: Notify,
    /// Orphans that a burial has already loaded. The next recovery pass takes them and does not query first. Holds one
    /// value: while it is full, the pass that will take it queries again afterwards anyway.
    loaded: (mpsc::Sender<Loaded>, Mutex<mpsc::Receiver<Loaded>>),
    finished: AtomicUsize,
    yielded: AtomicUsize,
}

impl Engine {
    pub(crate) fn new(member: Arc<Membership>, db: Database, handlers: HashMap<String, Arc<dyn Handler>>) -> Arc<Self> {
        let registry = Registry::new(member.settings.capacity, &member.settings.capacity_of);
        let (loaded, taken) = mpsc::channel(1);
        Arc::new(Self {
            member,
            db,
            handlers,
            registry,
            flusher: Flusher::default(),
            readers: Readers::default(),
            failures: Failures::default(),
            recover_now: Notify::new(),
            recover_hinted: Notify::new(),
            loaded: (loaded, Mutex::new(taken)),
            finished: AtomicUsize::new(0),
            yielded: AtomicUsize::new(0),
        })
    }

    /// Hands over the orphans that a burial has loaded, if it has, and makes the next recovery pass come now.
    pub(crate) fn recover_with(&self, loaded: Option<Loaded>) {
        if let Some(loaded) = loaded {
            // Full: see the field.
            let _ = self.loaded.0.try_send(loaded);
        }
        self.recover_now.notify_one();
    }

    /// The orphans that a burial has loaded since the last call.
    pub(super) async fn take_loaded(&self) -> Option<Loaded> {
        self.loaded.1.lock().await.try_recv().ok()
    }

    /// The kinds that this pod has a handler for, in order.
    pub(crate) fn kinds(&self) -> Vec<String> {
        let mut kinds: Vec<_> = self.handlers.keys().cloned().collect();
        kinds.sort_unstable();
        kinds
    }

    /// Tells every run to stop.
    pub(crate) fn stop_all_runs(&self, reason: StopReason) -> usize {
        self.registry.stop_all(reason)
    }

    /// Tells one run to stop; where a fence is given, only the attempt that works under it.
    pub(crate) fn stop_run(&self, run_id: RunId, of: Option<Fence>, reason: StopReason) {
        self.registry.stop(run_id, of, reason);
    }

    /// How many runs were finished and yielded so far.
    pub(crate) fn endings(&self) -> (usize, usize) {
        (self.finished.load(Ordering::Acquire), self.yielded.load(Ordering::Acquire))
    }

    pub(crate) fn note_finished(&self) {
        self.finished.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn note_yielded(&self) {
        self.yielded.fetch_add(1, Ordering::AcqRel);
    }
}
