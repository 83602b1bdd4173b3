//! What the parts of a pod share: the application's side and the keeper's thread.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::clock;
use super::progress::Sources;
use super::status::{Phase, PodEvent, PodStatus};
use crate::config::{OnDetach, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Fence, Incarnation, PodId, RunId};
use crate::pg::pool::Database;
use crate::protocol::Moment;
use crate::protocol::stall::Progress;
use crate::runs::failures::Failures;
use crate::runs::recover::Loaded;
use crate::runs::registry::Registry;
use crate::runs::stream::flush::Flusher;
use crate::runs::stream::readers::Readers;
use crate::runs::{Handler, StopReason};

/// Events that wait for a slow receiver before it misses some.
const EVENTS: usize = 256;

/// How many incarnations that were seen alive a pod remembers: far more than die before their runs are claimed. The oldest
/// are forgotten first; one that still lives is seen again at the next look.
const COMPANIONS: usize = 4096;

/// The facts that make up a [`Phase`].
#[derive(Clone, Copy, Debug)]
struct Standing {
    incarnation: Incarnation,
    attached: bool,
    draining: bool,
    stopped: bool,
}

pub(crate) struct Shared {
    pub(crate) pod_id: PodId,
    pub(crate) settings: Arc<Settings>,
    pub(crate) db: Database,
    pub(crate) handlers: HashMap<String, Arc<dyn Handler>>,
    pub(crate) registry: Registry,
    /// Stores what the runs append to their streams.
    pub(crate) flusher: Flusher,
    /// Those who are attached to streams here.
    pub(crate) readers: Readers,
    /// Runs that failed here, until the event log tells of them.
    pub(crate) failures: Failures,
    /// The application's runtime: handlers and recovery run there.
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) tracker: TaskTracker,
    /// Fires when the pod is to end everything; the keeper's thread ends on it.
    pub(crate) root: CancellationToken,
    /// Fires when the keeper's thread has ended.
    pub(crate) ended: CancellationToken,
    pub(crate) drain_requested: CancellationToken,
    /// Hastens the next recovery pass.
    pub(crate) recover_now: Notify,
    /// A notice says that there are orphans: hastens the next recovery pass, within bounds (L11).
    pub(crate) recover_hinted: Notify,
    /// What the next recovery pass need not load, because a burial has.
    pub(crate) loaded: Mutex<Option<Loaded>>,
    /// Hastens the next look.
    pub(crate) look_now: Notify,
    /// Our own row is gone although we hold our lock.
    pub(crate) row_gone: Notify,
    pub(crate) events: broadcast::Sender<PodEvent>,
    /// Raised by a task of the application's runtime: that it runs tasks at all.
    pub(crate) runtime_pulse: AtomicU64,
    /// Raised by each fenced write that was accepted.
    pub(crate) accepted_writes: AtomicU64,
    pub(crate) sources: Sources,
    /// Incarnations that the keeper's thread has seen alive. The recovery pass reads them.
    companions: watch::Sender<Arc<BTreeSet<Incarnation>>>,
    /// When the last answered ping was sent, in nanoseconds of [`clock::now`] (L7).
    answered: AtomicU64,
    finished: AtomicUsize,
    yielded: AtomicUsize,
    standing: watch::Sender<Standing>,
    /// The incarnation that gave itself up (L7); whatever happens later, it is over.
    given_up: Mutex<Option<Incarnation>>,
    /// A stop that could not join its runs: the lock stays until the process ends.
    stuck: AtomicBool,
    failure: OnceLock<String>,
    keeper: Mutex<Option<std::thread::JoinHandle<()>>>,
}

pub(crate) struct Parts {
    pub(crate) pod_id: PodId,
    pub(crate) settings: Arc<Settings>,
    pub(crate) db: Database,
    pub(crate) handlers: HashMap<String, Arc<dyn Handler>>,
    pub(crate) runtime: tokio::runtime::Handle,
}

impl Shared {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { pod_id, settings, db, handlers, runtime } = parts;
        let standing =
            Standing { incarnation: Incarnation::generate(), attached: false, draining: false, stopped: false };
        Arc::new(Self {
            pod_id,
            registry: Registry::new(settings.capacity, &settings.capacity_of),
            flusher: Flusher::default(),
            readers: Readers::default(),
            failures: Failures::default(),
            settings,
            db,
            handlers,
            runtime,
            tracker: TaskTracker::new(),
            root: CancellationToken::new(),
            ended: CancellationToken::new(),
            drain_requested: CancellationToken::new(),
            recover_now: Notify::new(),
            recover_hinted: Notify::new(),
            loaded: Mutex::new(None),
            look_now: Notify::new(),
            row_gone: Notify::new(),
            events: broadcast::channel(EVENTS).0,
            runtime_pulse: AtomicU64::new(0),
            accepted_writes: AtomicU64::new(0),
            sources: Sources::default(),
            companions: watch::Sender::default(),
            answered: AtomicU64::new(0),
            finished: AtomicUsize::new(0),
            yielded: AtomicUsize::new(0),
            standing: watch::channel(standing).0,
            given_up: Mutex::new(None),
            stuck: AtomicBool::new(false),
            failure: OnceLock::new(),
            keeper: Mutex::new(None),
        })
    }

    /// Incarnations that this pod has seen alive.
    pub(crate) fn companions(&self) -> Arc<BTreeSet<Incarnation>> {
        Arc::clone(&self.companions.borrow())
    }

    /// A look showed these alive.
    pub(crate) fn note_companions(&self, alive: impl Iterator<Item = Incarnation>) {
        let known = self.companions();
        let fresh: Vec<_> = alive.filter(|incarnation| !known.contains(incarnation)).collect();
        if fresh.is_empty() {
            return;
        }
        let mut now = BTreeSet::clone(&known);
        now.extend(fresh);
        while now.len() > COMPANIONS {
            now.pop_first();
        }
        self.companions.send_replace(Arc::new(now));
    }

    /// The kinds that this pod has a handler for, in order.
    pub(crate) fn kinds(&self) -> Vec<String> {
        let mut kinds: Vec<_> = self.handlers.keys().cloned().collect();
        kinds.sort_unstable();
        kinds
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.standing.borrow().incarnation
    }

    pub(crate) fn phase(&self) -> Phase {
        let standing = *self.standing.borrow();
        if standing.stopped {
            Phase::Stopped
        } else if standing.draining {
            Phase::Draining
        } else if standing.attached {
            Phase::Active
        } else {
            Phase::Detached
        }
    }

    pub(crate) fn status(&self) -> PodStatus {
        let standing = *self.standing.borrow();
        PodStatus {
            pod_id: self.pod_id.clone(),
            incarnation: standing.incarnation,
            phase: self.phase(),
            attached: standing.attached,
            runs: self.registry.len(),
        }
    }

    /// Resolves when the status may have changed.
    pub(crate) fn status_changes(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut changes = self.standing.subscribe();
        async move {
            // The sender lives as long as the pod; an error means that it is gone, which is a change as well.
            let _ = changes.changed().await;
        }
    }

    pub(crate) fn set_attached(&self, incarnation: Incarnation) {
        self.standing.send_modify(|s| (s.incarnation, s.attached) = (incarnation, true));
    }

    pub(crate) fn set_detached(&self) {
        self.standing.send_modify(|s| s.attached = false);
    }

    /// True if this call began it.
    pub(crate) fn set_draining(&self) -> bool {
        self.standing.send_if_modified(|s| !std::mem::replace(&mut s.draining, true))
    }

    pub(crate) fn set_stopped(&self) {
        self.standing.send_modify(|s| (s.attached, s.stopped) = (false, true));
    }

    /// The pod may start and claim runs; else why not.
    pub(crate) fn may_take_work(&self) -> Result<Incarnation> {
        let (kind, why) = match self.phase() {
            Phase::Active => return Ok(self.incarnation()),
            Phase::Detached => (ErrorKind::Detached, "has lost its liveness session and is coming back"),
            Phase::Draining => (ErrorKind::Draining, "is draining"),
            Phase::Stopped => (ErrorKind::Stopped, "has ended"),
        };
        Err(Error::new(kind, format!("pod {} {why}", self.pod_id))
            .left("no run was started")
            .todo("retry on another pod"))
    }

    /// A ping that was sent at `sent` was answered.
    pub(crate) fn note_answered(&self, sent: Moment) {
        self.answered.fetch_max(nanos(sent), Ordering::AcqRel);
    }

    /// When the last answered ping was sent.
    pub(crate) fn answered(&self) -> Moment {
        Duration::from_nanos(self.answered.load(Ordering::Acquire))
    }

    /// Gives `incarnation` up for good. True if this call did it. What begins under it later is told to stop as well.
    pub(crate) fn set_given_up(&self, incarnation: Incarnation) -> bool {
        let first = self.given_up_slot().replace(incarnation) != Some(incarnation);
        // Wakes whoever waits for it.
        self.standing.send_modify(|_| {});
        first
    }

    /// Resolves when `incarnation` is given up, or is not this pod's any more.
    pub(crate) async fn over(&self, incarnation: Incarnation) {
        let over = |s: &Standing| s.stopped || s.incarnation != incarnation || self.has_given_up(incarnation);
        // The sender lives as long as `self`.
        let _ = self.standing.subscribe().wait_for(over).await;
    }

    /// Resolves when this pod is cut off: it is detached, and no ping was answered for `self_fence`. What it serves from the
    /// database is better asked for elsewhere from then on.
    pub(crate) async fn cut_off(&self) {
        let mut standing = self.standing.subscribe();
        loop {
            // The sender lives as long as `self`.
            let _ = standing.wait_for(|s| !s.attached).await;
            let left = (self.answered() + self.settings.self_fence).saturating_sub(clock::now());
            if left.is_zero() {
                return;
            }
            tokio::select! {
                _ = standing.wait_for(|s| s.attached) => {}
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// For how long no ping was answered, counted from the sending of the last one that was.
    pub(crate) fn silent_for(&self) -> Duration {
        clock::now().saturating_sub(self.answered())
    }

    pub(crate) fn has_given_up(&self, incarnation: Incarnation) -> bool {
        self.given_up() == Some(incarnation)
    }

    pub(crate) fn given_up(&self) -> Option<Incarnation> {
        *self.given_up_slot()
    }

    fn given_up_slot(&self) -> MutexGuard<'_, Option<Incarnation>> {
        self.given_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.standing.borrow().draining
    }

    pub(crate) fn set_stuck(&self) {
        self.stuck.store(true, Ordering::Release);
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Acquire)
    }

    /// L7, for each write: whether the pod has been silent for so long that its runs count as lost.
    pub(crate) fn is_past_deadline(&self) -> bool {
        self.settings.on_detach == OnDetach::Cancel && self.is_silent_for_too_long()
    }

    /// Whether no ping was answered for `self_fence`.
    pub(crate) fn is_silent_for_too_long(&self) -> bool {
        clock::now() >= self.answered() + self.settings.self_fence
    }

    /// Tells every run to stop.
    pub(crate) fn stop_all_runs(&self, reason: StopReason) -> usize {
        self.registry.stop_all(reason)
    }

    /// Tells one run to stop; where a fence is given, only the attempt that works under it.
    pub(crate) fn stop_run(&self, run_id: RunId, of: Option<Fence>, reason: StopReason) {
        self.registry.stop(run_id, of, reason);
    }

    /// Rows are read because of notices. For people, and for tests that count it.
    pub(crate) fn note_hint(&self, kind: &'static str) {
        tracing::trace!(target: "podlock", pod = %self.pod_id, hinted = kind, "notices bring a look about");
    }

    pub(crate) fn publish(&self, event: PodEvent) {
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    /// Runs a part of the pod as a tracked task. Without it the pod would be half of one: should it panic, the pod ends.
    pub(crate) fn spawn(self: &Arc<Self>, part: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::clone(self);
        let watched = async move {
            if std::panic::AssertUnwindSafe(work).catch_unwind().await.is_err() {
                let what = format!("pod {}: {part} panicked", shared.pod_id);
                shared.fail(
                    &Error::new(ErrorKind::Stopped, what)
                        .left("its runs were told to stop; survivors take them over")
                        .todo("look for the panic on stderr, and report it"),
                );
            }
        };
        self.tracker.spawn_on(watched, &self.runtime);
    }

    /// Ends the pod for a reason that it cannot mend.
    pub(crate) fn fail(&self, error: &Error) {
        tracing::error!(target: "podlock", event = "failed", pod = %self.pod_id, incarnation = %self.incarnation(), error = %error, "the pod ends");
        // The first failure is the one that counts.
        let _ = self.failure.set(error.to_string());
        self.stop_all_runs(StopReason::SelfFenced);
        self.root.cancel();
    }

    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// How many runs were finished and yielded so far.
    pub(crate) fn endings(&self) -> (usize, usize) {
        (self.finished.load(Ordering::Acquire), self.yielded.load(Ordering::Acquire))
    }

    /// What the application has done so far.
    pub(crate) fn progress(&self) -> Progress {
        Progress {
            pulse: self.runtime_pulse.load(Ordering::Acquire),
            writes: self.accepted_writes.load(Ordering::Acquire),
            sources: self.sources.read(),
        }
    }

    pub(crate) fn note_finished(&self) {
        self.finished.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn note_yielded(&self) {
        self.yielded.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn keeper(&self) -> MutexGuard<'_, Option<std::thread::JoinHandle<()>>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nanos(moment: Moment) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}
