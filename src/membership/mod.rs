//! This process as a member of the fleet: its name and incarnation, its phase, its deadline, its progress.
//!
//! Work of every kind (runs, workers, history) uses this module. It asks whether it may begin, and for which
//! incarnation. It asks whether the pod is past its deadline (L7). It reports its progress. Only the pod's life in
//! `pod` changes the membership.
//!
//! Invariant: nothing here does I/O, and nothing here knows of runs.

pub(crate) mod clock;
mod progress;
mod status;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::alert::Alert;
use crate::config::{OnDetach, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, PodId};
use crate::protocol::Moment;
use crate::protocol::stall::Progress;
use progress::Sources;

pub use progress::ProgressSource;
pub use status::{Phase, PodEvent, PodStatus};

/// How many events wait for a slow receiver before it misses some. A restart of a large fleet makes two or three events
/// a pod. More only costs memory, once per pod.
const EVENTS: usize = 256;

/// How many incarnations that were seen alive a pod remembers. Far fewer die before their runs are claimed. The oldest
/// are forgotten first. One that still lives is seen again at the next probe.
const COMPANIONS: usize = 4096;

/// The facts from which a [`Phase`] follows.
#[derive(Clone, Debug)]
struct Facts {
    incarnation: Incarnation,
    attached: bool,
    draining: bool,
    stopped: bool,
    /// Who cordoned the pod, as its row last said it. It stays when the process registers again.
    cordoned_by: Option<Arc<str>>,
}

impl Facts {
    fn phase(&self) -> Phase {
        if self.stopped {
            Phase::Stopped
        } else if self.draining {
            Phase::Draining
        } else if !self.attached {
            Phase::Detached
        } else if self.cordoned_by.is_some() {
            Phase::Cordoned
        } else {
            Phase::Active
        }
    }
}

/// The membership of one pod.
pub(crate) struct Membership {
    pub(crate) pod_id: PodId,
    /// The NOTIFY channel on which only this pod listens. It is random, so each process has another.
    pub(crate) channel: String,
    pub(crate) settings: Arc<Settings>,
    /// The application's runtime. All work runs on it, except the pod's own life.
    pub(crate) runtime: tokio::runtime::Handle,
    /// All tasks of the pod, so that a shutdown can wait for them.
    pub(crate) tracker: TaskTracker,
    /// Fires when the pod must end everything. The thread of the pod's sessions ends then.
    pub(crate) root: CancellationToken,
    /// Fires when somebody asks this pod to drain.
    pub(crate) drain_requested: CancellationToken,
    /// Events for the application. The pod's sessions send; each subscriber receives. A slow one misses some.
    pub(crate) events: broadcast::Sender<PodEvent>,
    /// Alerts for the application. The pod's sessions send; the callback and the webhooks receive. A slow one misses some.
    pub(crate) alerts: broadcast::Sender<Alert>,
    /// A task of the application's runtime increments it, to show that the runtime runs tasks. The keeper reads it.
    pub(crate) runtime_pulse: AtomicU64,
    /// Each accepted fenced write of a run increments it. A beat reads it as progress.
    pub(crate) accepted_writes: AtomicU64,
    pub(crate) sources: Sources,
    /// Incarnations that this pod has seen alive. The sweeper writes them, the recovery pass reads them.
    companions: watch::Sender<Arc<BTreeSet<Incarnation>>>,
    /// How many living peers this pod knows of, at most. The sweeper writes it, and the recovery pass reads it.
    peers: AtomicUsize,
    /// When the last answered ping was sent, in nanoseconds of [`clock::now`] (L7). The keeper raises it. Every fenced
    /// write reads it.
    answered: AtomicU64,
    /// The pod's life in `pod` writes them. A change wakes every task that waits for one.
    facts: watch::Sender<Facts>,
    /// The incarnation that gave itself up (L7). It stays given up, whatever happens later. The keeper writes it;
    /// attempts and returns read it.
    given_up: Mutex<Option<Incarnation>>,
}

impl Membership {
    pub(crate) fn new(pod_id: PodId, settings: Arc<Settings>, runtime: tokio::runtime::Handle) -> Arc<Self> {
        let incarnation = Incarnation::generate();
        let facts = Facts { incarnation, attached: false, draining: false, stopped: false, cordoned_by: None };
        Arc::new(Self {
            pod_id,
            channel: format!("podlock_pod_{:016x}", fastrand::u64(..)),
            settings,
            runtime,
            tracker: TaskTracker::new(),
            root: CancellationToken::new(),
            drain_requested: CancellationToken::new(),
            events: broadcast::channel(EVENTS).0,
            alerts: broadcast::channel(EVENTS).0,
            runtime_pulse: AtomicU64::new(0),
            accepted_writes: AtomicU64::new(0),
            sources: Sources::default(),
            companions: watch::Sender::default(),
            peers: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            facts: watch::channel(facts).0,
            given_up: Mutex::new(None),
        })
    }

    /// The pod's status. The caller passes the number of runs.
    pub(crate) fn status(&self, runs: usize) -> PodStatus {
        let (incarnation, attached, phase) = {
            let facts = self.facts.borrow();
            (facts.incarnation, facts.attached, facts.phase())
        };
        PodStatus { pod_id: self.pod_id.clone(), incarnation, phase, attached, runs }
    }

    /// Incarnations that this pod has seen alive.
    pub(crate) fn companions(&self) -> Arc<BTreeSet<Incarnation>> {
        Arc::clone(&self.companions.borrow())
    }

    /// Records the pods that a probe found alive.
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

    /// How many living peers this pod knows of, at most.
    pub(crate) fn peers(&self) -> usize {
        self.peers.load(Ordering::Acquire)
    }

    /// Records how many living peers a probe found, at most.
    pub(crate) fn note_peers(&self, peers: usize) {
        self.peers.store(peers, Ordering::Release);
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.facts.borrow().incarnation
    }

    pub(crate) fn phase(&self) -> Phase {
        self.facts.borrow().phase()
    }

    /// Who cordoned this pod. `None`: nobody, as far as this process knows. The server knows it first, and refuses.
    pub(crate) fn cordoned_by(&self) -> Option<Arc<str>> {
        self.facts.borrow().cordoned_by.clone()
    }

    /// Records who cordoned the pod. Returns true if that changes whether it is cordoned.
    pub(crate) fn set_cordoned(&self, by: Option<String>) -> bool {
        self.facts.send_if_modified(|s| {
            let changed = s.cordoned_by.is_some() != by.is_some();
            s.cordoned_by = by.map(Arc::from);
            changed
        })
    }

    /// Resolves when the status may have changed.
    pub(crate) fn status_changes(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut changes = self.facts.subscribe();
        async move {
            // The sender lives as long as the pod. An error means that the pod is gone, which is a change as well.
            let _ = changes.changed().await;
        }
    }

    pub(crate) fn set_attached(&self, incarnation: Incarnation) {
        self.facts.send_modify(|s| (s.incarnation, s.attached) = (incarnation, true));
    }

    /// Whether the pod holds its lock, as far as it knows.
    pub(crate) fn is_attached(&self) -> bool {
        self.facts.borrow().attached
    }

    pub(crate) fn set_detached(&self) {
        self.facts.send_modify(|s| s.attached = false);
    }

    /// Begins the drain. Returns true if this call began it.
    pub(crate) fn set_draining(&self) -> bool {
        self.facts.send_if_modified(|s| !std::mem::replace(&mut s.draining, true))
    }

    pub(crate) fn set_stopped(&self) {
        self.facts.send_modify(|s| (s.attached, s.stopped) = (false, true));
    }

    /// Returns the incarnation if the pod may start and claim runs. The error says why it may not.
    pub(crate) fn may_take_work(&self) -> Result<Incarnation> {
        let (kind, why) = match self.phase() {
            Phase::Active => return Ok(self.incarnation()),
            Phase::Cordoned => return Err(self.cordoned()),
            Phase::Detached => (ErrorKind::Detached, "has lost its liveness session and is coming back"),
            Phase::Draining => (ErrorKind::Draining, "is draining"),
            Phase::Stopped => (ErrorKind::Stopped, "has ended"),
        };
        Err(Error::new(kind, format!("pod {} {why}", self.pod_id))
            .state("no run was started")
            .help("retry on another pod"))
    }

    /// Returns the incarnation if the pod may work on what is its own already: it holds its lock and does not drain.
    /// So may a cordoned pod. A claim of a cordoned pod is refused by the server, unless the run is its own.
    pub(crate) fn may_keep_work(&self) -> Option<Incarnation> {
        let facts = self.facts.borrow();
        matches!(facts.phase(), Phase::Active | Phase::Cordoned).then_some(facts.incarnation)
    }

    /// Why a cordoned pod starts no run. The server may refuse before this process has heard of the cordon.
    pub(crate) fn cordoned(&self) -> Error {
        let pod = &self.pod_id;
        let by = self.cordoned_by().map_or(String::new(), |by| format!(" by {by}"));
        let what = format!("pod {pod} is cordoned{by}: it keeps its runs and takes no new ones");
        Error::new(ErrorKind::Cordoned, what)
            .state("no run was started; those of the pod go on")
            .help(format!("start it on another pod, submit it unowned, or lift the cordon: `podlock uncordon {pod}`"))
    }

    /// Records that a ping that was sent at `sent` was answered.
    pub(crate) fn note_answered(&self, sent: Moment) {
        self.answered.fetch_max(nanos(sent), Ordering::AcqRel);
    }

    /// When the last answered ping was sent.
    pub(crate) fn answered(&self) -> Moment {
        Duration::from_nanos(self.answered.load(Ordering::Acquire))
    }

    /// Gives `incarnation` up for good. Returns true if this call did it. A run that begins under it later is told to
    /// stop as well.
    pub(crate) fn set_given_up(&self, incarnation: Incarnation) -> bool {
        let first = self.given_up_slot().replace(incarnation) != Some(incarnation);
        // Wakes the tasks in [`Membership::over`].
        self.facts.send_modify(|_| {});
        first
    }

    /// Resolves when `incarnation` is given up, or this pod has another one.
    pub(crate) async fn over(&self, incarnation: Incarnation) {
        let over = |s: &Facts| s.stopped || s.incarnation != incarnation || self.has_given_up(incarnation);
        // The sender lives as long as `self`.
        let _ = self.facts.subscribe().wait_for(over).await;
    }

    /// Resolves when this pod is cut off: it is detached, and no ping was answered for `self_fence`. From then on
    /// another pod can serve readers better.
    pub(crate) async fn cut_off(&self) {
        let mut facts = self.facts.subscribe();
        loop {
            // The sender lives as long as `self`.
            let _ = facts.wait_for(|s| !s.attached).await;
            let left = (self.answered() + self.settings.self_fence).saturating_sub(clock::now());
            if left.is_zero() {
                return;
            }
            tokio::select! {
                _ = facts.wait_for(|s| s.attached) => {}
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    /// How long no ping was answered, counted from when the last answered one was sent.
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
        self.facts.borrow().draining
    }

    /// L7, for each write: whether the pod was silent for so long that its runs count as lost.
    pub(crate) fn is_past_deadline(&self) -> bool {
        self.settings.on_detach == OnDetach::Cancel && self.is_silent_for_too_long()
    }

    /// Whether no ping was answered for `self_fence`.
    pub(crate) fn is_silent_for_too_long(&self) -> bool {
        clock::now() >= self.answered() + self.settings.self_fence
    }

    /// Records that rows are read because of notices. This is for people, and for tests that count it.
    pub(crate) fn note_hint(&self, kind: &'static str) {
        tracing::trace!(target: "podlock", pod = %self.pod_id, hinted = kind, "notices bring a look about");
    }

    pub(crate) fn publish(&self, event: PodEvent) {
        // It does not matter if nobody listens.
        let _ = self.events.send(event);
    }

    pub(crate) fn publish_alert(&self, alert: Alert) {
        // It does not matter if nobody listens.
        let _ = self.alerts.send(alert);
    }

    /// The application's progress so far.
    pub(crate) fn progress(&self) -> Progress {
        Progress {
            pulse: self.runtime_pulse.load(Ordering::Acquire),
            writes: self.accepted_writes.load(Ordering::Acquire),
            sources: self.sources.read(),
        }
    }
}

fn nanos(moment: Moment) -> u64 {
    u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)
}
