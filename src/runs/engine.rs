//! The engine of runs: the state that the parts of `runs` share.
//!
//! Architecture invariant: nothing that the engine is made of knows the engine. What works with the engine (a `Run`,
//! the parts in the background, the recovery pass) stands above it, and so do the handlers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::StopReason;
use super::failed::Failures;
use super::offers::Offers;
use super::registry::Registry;
use super::stream::queue::Flusher;
use super::stream::readers::Readers;
use super::writer::Writer;
use crate::error::{Error, ErrorKind};
use crate::id::{Fence, Incarnation, RunId};
use crate::membership::Membership;
use crate::pg::pool::{Database, MaySend};
use crate::protocol::offer::Untold;
use crate::protocol::recover::{Memory, Seen};

/// The input of a recovery pass: what this process knew before the load, and the rows that the load returned.
pub(crate) struct Loaded {
    pub(super) own: Incarnation,
    pub(super) memory: Memory,
    /// The load asked for all orphans, and not only for this pod's share.
    pub(super) wide: bool,
    /// The load did not ask for all orphans. There is no room for some kinds, or a suspect runs here.
    pub(super) held_back: bool,
    /// The load left orphans out that this pod cannot take now, for this or another reason.
    pub(super) hidden: bool,
    pub(super) seen: Seen,
}

/// What a service does with the trace and the span of an attempt, before it begins.
pub(crate) type OnAttempt = Arc<dyn Fn(&str, &tracing::Span) + Send + Sync>;

pub(crate) struct Engine {
    pub(crate) member: Arc<Membership>,
    pub(crate) db: Database,
    /// The same for the writes of owners: nothing is sent past the deadline (L7).
    pub(super) owners_db: Database,
    /// Called with the trace and the span of each attempt before it begins.
    pub(super) on_attempt: Option<OnAttempt>,
    /// The kinds for which this pod has a handler, sorted.
    pub(crate) kinds: Vec<String>,
    /// The runs of this process. The task of each attempt shares it, to free its place.
    pub(crate) registry: Arc<Registry>,
    /// Groups the writes of the runs.
    pub(crate) writer: Arc<Writer>,
    /// Stores the chunks that the runs append to their streams.
    pub(crate) flusher: Flusher,
    /// The readers that are attached to streams on this pod.
    pub(crate) readers: Readers,
    /// Runs that failed on this pod, until they are written to the event log.
    pub(crate) failures: Failures,
    /// Runs without an owner that other pods should know of, until the herald has told them.
    pub(crate) offers: Offers,
    /// Makes the next recovery pass begin now. A boot, a regained lock, a new control session and a burial notify it;
    /// `recover` waits for it. `Notify` keeps one wake that comes during a pass, so none is lost.
    pub(crate) recover_now: Notify,
    /// A notice says that there are orphans. `pod::hints` notifies it; the next recovery pass begins soon, at a
    /// limited rate (L11). If a wake is lost, the next sweep finds the orphans.
    pub(crate) recover_hinted: Notify,
    /// When a recovery pass is due because of an event of another pod. `recover` waits for it, and takes it.
    recover_by: watch::Sender<Option<Instant>>,
    /// Orphans that a burial has already loaded. The next recovery pass takes them instead of querying. The channel
    /// has room for one value. A value that finds it full is dropped: after the pass that takes the earlier value,
    /// another pass follows and queries.
    loaded: mpsc::Sender<Loaded>,
    /// How many attempts here have ended their run, and how many have yielded it. Attempts increment them; the
    /// shutdown reads them.
    finished: AtomicUsize,
    yielded: AtomicUsize,
    /// The incarnation whose runs began last here, and how many attempts began under it. Attempts count; samples read.
    begun: Mutex<(Option<Incarnation>, u64)>,
}

/// L7: an owner past its deadline writes nothing. Nothing is sent then. `Run::write` looks at the deadline again, and
/// says so.
fn before_the_deadline(member: &Arc<Membership>) -> MaySend {
    let member = Arc::clone(member);
    Arc::new(move || {
        if member.is_past_deadline() {
            return Err(Error::new(ErrorKind::Timeout, "the pod is past its deadline").unconnected());
        }
        Ok(())
    })
}

impl Engine {
    /// The engine, and the other end of `loaded`, for `recover`.
    pub(crate) fn new(
        member: Arc<Membership>,
        db: Database,
        kinds: Vec<String>,
        on_attempt: Option<OnAttempt>,
    ) -> (Arc<Self>, mpsc::Receiver<Loaded>) {
        let registry = Registry::new(member.settings.capacity, &member.settings.capacity_of);
        let (loaded, received) = mpsc::channel(1);
        let engine = Self {
            writer: Writer::new(db.most_connections(), db.longest_wait()),
            owners_db: db.guarded(before_the_deadline(&member)),
            member,
            db,
            kinds,
            on_attempt,
            registry: Arc::new(registry),
            flusher: Flusher::default(),
            readers: Readers::default(),
            failures: Failures::default(),
            offers: Offers::default(),
            recover_now: Notify::new(),
            recover_hinted: Notify::new(),
            recover_by: watch::Sender::new(None),
            loaded,
            finished: AtomicUsize::new(0),
            yielded: AtomicUsize::new(0),
            begun: Mutex::default(),
        };
        (Arc::new(engine), received)
    }

    /// Passes on the orphans that a burial has loaded, if any, and makes the next recovery pass begin now.
    pub(crate) fn recover_with(&self, loaded: Option<Loaded>) {
        if let Some(loaded) = loaded {
            // If the channel is full, the value is dropped. The field `loaded` says why that loses nothing.
            let _ = self.loaded.try_send(loaded);
        }
        self.recover_now.notify_one();
    }

    /// Whom to tell first of a run of this kind that nobody owns: this pod itself if it can take the run.
    pub(crate) fn untold(&self, kind: &str) -> Untold {
        let can_take = self.kinds.iter().any(|known| known == kind)
            && self.registry.has_room(kind)
            && self.member.may_take_work().is_ok();
        if can_take { Untold { own: true, ..Untold::default() } } else { self.untold_to_others(kind) }
    }

    /// The same for a run that this pod does not take: it has just released the run.
    pub(crate) fn untold_to_others(&self, kind: &str) -> Untold {
        Untold { kinds: [kind.to_owned()].into(), ..Untold::default() }
    }

    /// This pod was chosen to take runs that nobody owns: makes a recovery pass begin soon, at a limited rate (L11).
    pub(crate) fn take_offer(&self) {
        self.offers.choose();
        self.recover_hinted.notify_one();
    }

    /// Makes a recovery pass due after `wait` at the latest. A pass that begins earlier for another reason does not
    /// replace it: that pass may read the rows before the other pods have acted on them.
    pub(crate) fn recover_within(&self, wait: Duration) {
        let at = Instant::now() + wait;
        self.recover_by.send_if_modified(|by| {
            let is_earlier = by.is_none_or(|by| at < by);
            if is_earlier {
                *by = Some(at);
            }
            is_earlier
        });
    }

    /// Waits until a pass is due by [`Self::recover_within`], and takes that time back. Cancel safe.
    pub(super) async fn recovery_is_due(&self) {
        let mut changed = self.recover_by.subscribe();
        loop {
            let by = *changed.borrow_and_update();
            tokio::select! {
                biased;
                // The sender lives as long as this engine.
                _ = changed.changed() => {}
                () = tokio::time::sleep_until(by.unwrap_or_else(Instant::now)), if by.is_some() => {
                    self.recover_by.send_replace(None);
                    return;
                }
            }
        }
    }

    /// Tells every run to stop.
    pub(crate) fn stop_all_runs(&self, reason: StopReason) -> usize {
        self.registry.stop_all(reason)
    }

    /// Tells one run to stop. If a fence is given, tells only the attempt with that fence.
    pub(crate) fn stop_run(&self, run_id: RunId, of: Option<Fence>, reason: StopReason) {
        self.registry.stop(run_id, of, reason);
    }

    /// How many runs this pod has finished, and how many it has yielded.
    pub(crate) fn endings(&self) -> (usize, usize) {
        (self.finished.load(Ordering::Acquire), self.yielded.load(Ordering::Acquire))
    }

    /// How many attempts have begun under this incarnation.
    pub(crate) fn begun(&self, under: Incarnation) -> u64 {
        let (of, count) = *self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if of == Some(under) { count } else { 0 }
    }

    pub(crate) fn note_begun(&self, under: Incarnation) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        *begun = (Some(under), if begun.0 == Some(under) { begun.1 + 1 } else { 1 });
    }

    pub(crate) fn note_finished(&self) {
        self.finished.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn note_yielded(&self) {
        self.yielded.fetch_add(1, Ordering::AcqRel);
    }
}
