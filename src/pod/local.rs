//! The state that the three sessions of a pod share. It never leaves the keeper's thread, so cells need no locks.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::delays::Delays;
use super::shared::Shared;
use crate::id::{Incarnation, PodId};
use crate::membership::clock;
use crate::pg::session::{Backend, Opener};
use crate::protocol::Moment;
use crate::protocol::cause;
use crate::protocol::deadline::may_end_silent;
use crate::protocol::neighbours::{self, NEIGHBOURS, Neighbours, Steady};
use crate::protocol::patience::{Comparable, Difference, differences, may_bury_from};
use crate::protocol::poison;
use crate::protocol::portions::{Pace, Portion};
use crate::protocol::ring::{self, RingPlace};
use crate::protocol::stall::{self, Beat, Stalled};
use crate::protocol::turns::{self, Beaten};
use crate::protocol::verdict::{self, Decision, LossObserver, PeerProbe, VerdictTiming};
use crate::protocol::wait::{self, Wait};
use crate::store::burials::{PeerRow, Proof, RosterProbe};
use crate::store::locks::Keys;
use crate::store::strangers::{self, ForeignLock};

/// How long a pod keeps probing after a report that a lock came free: 3 s. The server ends the transaction of a frozen
/// burier within 1 s. Shorter: no pod probes right after that. Longer: needless probes.
const BURIER_MAY_FREEZE: Duration = Duration::from_secs(3);

/// After a wait that many peers have in common, a pod of a large fleet makes its whole probe within so much time for
/// each living peer. The pods then do not probe all at the same moment. Longer delays the burials; shorter costs the
/// server more at a time.
const WHOLE_SPREAD: Duration = Duration::from_millis(10);

/// How many burials a pod remembers: more than can overlap with one roster probe, which may go on while the
/// other session buries thousands. A burial that is forgotten too early counts as a loss for the length of the window,
/// and delays other burials. More only costs memory.
const REMEMBERED_BURIALS: usize = 1 << 14;

/// How many settings of peers that differ one roster probe reports. Each is a line in the log. If a large fleet
/// changes a setting, later probes report the others.
const DIFFERENCES_MOST: usize = 16;

/// Why a pod opens no session for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Away {
    /// The application's runtime is blocked.
    RuntimeBlocked,
    /// The pod was evicted, and waits for its application to make progress.
    Evicted,
}

impl Away {
    /// For the log.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::RuntimeBlocked => "the application's runtime is blocked",
            Self::Evicted => "the pod was evicted, and stays away until its application makes progress",
        }
    }
}

/// A lock that is held: the backend, the incarnation, and since when without a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LivenessLock {
    pub(crate) incarnation: Incarnation,
    pub(crate) backend: Backend,
    pub(crate) since: Moment,
}

/// In which part of the time until a pod may bury it prepares to do so: from 30 % to 90 %. Earlier meets the starts and
/// returns of other pods, later the first burial.
const WARM_UP_FROM: f64 = 0.3;
const WARM_UP_UPTO: f64 = 0.9;

pub(crate) struct Local {
    pub(crate) shared: Arc<Shared>,
    pub(crate) opener: Opener,
    pub(crate) keys: Keys,
    pub(crate) timing: VerdictTiming,
    /// The liveness lock; `None` while detached. The keeper writes it. The sweeper and the watcher read it, and the
    /// sweeper is woken by each change.
    pub(crate) lock: watch::Sender<Option<LivenessLock>>,
    /// Set while the pod opens no session. The keeper writes it; each change wakes the sweeper and the watcher.
    pub(crate) away: watch::Sender<Option<Away>>,
    /// The backend that holds the witness lock, as far as this pod knows. A silent control session that is not closed
    /// yet counts. The boot and the sweeper write it; the keeper reads it.
    pub(crate) control: Cell<Option<Backend>>,
    /// Whether the control session is in use, so that it answers. False once it failed, until the next one is armed.
    /// Written by the sweeper, read by the keeper.
    pub(crate) control_answers: Cell<bool>,
    /// Whether a silent liveness session is kept open: the server holds its lock at least until the deadline. Written
    /// by the keeper, read by the sweeper.
    pub(crate) liveness_is_kept: Cell<bool>,
    /// The roster or the set of free locks has changed. A decision and a burial notify. Wakes a watcher that has no
    /// peer to watch. The wake of a busy watcher is stored.
    pub(crate) roster_changed: Notify,
    observer: RefCell<LossObserver>,
    /// For the metrics.
    pub(crate) delays: Delays,
    beats: RefCell<stall::StallObserver>,
    roster: RefCell<Vec<RingPlace>>,
    roster_version: Cell<i64>,
    told: RefCell<BTreeSet<Incarnation>>,
    /// Rows of the roster whose names no pod can have, and that the log has named.
    misnamed: RefCell<BTreeSet<Incarnation>>,
    /// Peers with a differing setting and its value, and that the log has named.
    differences: RefCell<BTreeSet<(PodId, &'static str, Duration)>>,
    /// The incarnations that were buried, as far as this pod knows, in order and as a set. A roster probe that began
    /// before a burial may still show the buried incarnation.
    buried: RefCell<(VecDeque<Incarnation>, BTreeSet<Incarnation>)>,
    /// The portions of the next roster probe. Both sessions that probe write it.
    pub(crate) pace: Cell<Pace>,
    /// The lock key at which the next burial pass begins: the last pass gave up before that pod.
    pub(crate) bury_from: Cell<i64>,
    /// Dead pods that a burial passed over because another transaction holds one of their rows. Each with the time
    /// since when, and whether the log has reported it.
    held_up: RefCell<BTreeMap<Incarnation, (Moment, bool)>>,
    /// How long the last two roster probes took, the newest last.
    looks_took: Cell<[Duration; 2]>,
    next_probe: Cell<Option<Moment>>,
    /// When a pod of a large fleet probes the whole roster next. `None`: now. A pod of a small fleet always does.
    next_whole: Cell<Option<Moment>>,
    /// The peers in sight whose witness lock was held at the last whole probe: they may have died since.
    half_free: RefCell<BTreeSet<Incarnation>>,
    /// When this pod, which may bury no pod yet, may bury the first of the dead that the last roster probe showed. The
    /// sweeper takes the value when it plans its next probe.
    may_bury_at: Cell<Option<Moment>>,
    /// The peers that count towards the size of the fleet.
    steady: RefCell<Steady>,
    /// When this pod last decided on a whole probe.
    decided_at: Cell<Moment>,
    /// Until when the request of another pod for a whole probe stands.
    whole_asked_until: Cell<Moment>,
    /// How many peers the last roster probe showed alive.
    alive: Cell<usize>,
    /// How many peers the next check of beats reads at most.
    check_most: Cell<usize>,
    /// How often this pod has beaten since its last turn to check for strangers.
    beats_since_turn: Cell<usize>,
    /// The foreign locks that the event log reports, of those that the last check found.
    told_strangers: RefCell<BTreeSet<strangers::Told>>,
    /// Set once this pod has compared `max_crashes` with the number of pods, and warned if the limit is too high.
    fleet_was_weighed: Cell<bool>,
    /// The position in the event log up to which this pod has acted on events.
    pub(crate) log_read: Cell<i64>,
    /// `waits`: what the last roster probe showed and the event log does not report yet. `told_waits`: what the log
    /// reports.
    waits: RefCell<Vec<Wait>>,
    told_waits: RefCell<BTreeSet<wait::Told>>,
    /// When this pod last heard that a watch session found a peer's lock free.
    reported: Cell<Option<Moment>>,
    /// When a peer was last found to be gone from the roster.
    departed: Cell<Option<Moment>>,
}

impl Local {
    pub(crate) fn new(shared: Arc<Shared>, opener: Opener, keys: Keys) -> Self {
        let settings = &shared.member.settings;
        let timing = VerdictTiming {
            window: settings.lease / 10,
            second_probe: settings.hold_probe_interval,
            reconnect_grace: settings.reconnect_grace,
            settle: settings.settle,
        };
        Self {
            timing,
            opener,
            keys,
            lock: watch::channel(None).0,
            away: watch::channel(None).0,
            control: Cell::new(None),
            control_answers: Cell::new(true),
            liveness_is_kept: Cell::new(false),
            roster_changed: Notify::new(),
            observer: RefCell::default(),
            delays: Delays::default(),
            beats: RefCell::default(),
            roster: RefCell::default(),
            roster_version: Cell::new(0),
            told: RefCell::default(),
            misnamed: RefCell::default(),
            differences: RefCell::default(),
            buried: RefCell::default(),
            pace: Cell::default(),
            bury_from: Cell::new(i64::MIN),
            held_up: RefCell::default(),
            looks_took: Cell::default(),
            next_probe: Cell::new(None),
            next_whole: Cell::new(None),
            half_free: RefCell::default(),
            may_bury_at: Cell::new(None),
            decided_at: Cell::new(Moment::ZERO),
            whole_asked_until: Cell::new(Moment::ZERO),
            steady: RefCell::default(),
            alive: Cell::new(0),
            check_most: Cell::new(NEIGHBOURS),
            beats_since_turn: Cell::new(0),
            told_strangers: RefCell::default(),
            fleet_was_weighed: Cell::new(false),
            log_read: Cell::new(0),
            waits: RefCell::default(),
            told_waits: RefCell::default(),
            reported: Cell::new(None),
            departed: Cell::new(None),
            shared,
        }
    }

    pub(crate) fn lock(&self) -> Option<LivenessLock> {
        *self.lock.borrow()
    }

    /// L7: whether the runs were told to stop, or the deadline for telling them has passed. Until then, one of the
    /// two locks must be held at any time: peers that find both free begin the runs a second time. So a silent
    /// session is kept open, because the server may still hold its lock. Its successor ends it only while the other
    /// lock is surely held.
    pub(crate) fn may_let_go(&self) -> bool {
        let shared = &self.shared;
        shared.member.has_given_up(shared.member.incarnation()) || shared.member.is_silent_for_too_long()
    }

    /// Whether the successor of a silent liveness session may end it.
    pub(crate) fn may_end_liveness(&self) -> bool {
        may_end_silent(self.control.get().is_some() && self.control_answers.get(), self.may_let_go())
    }

    /// Whether the successor of a silent control session may end it.
    pub(crate) fn may_end_control(&self) -> bool {
        may_end_silent(self.lock().is_some() || self.liveness_is_kept.get(), self.may_let_go())
    }

    /// L2: whether this pod has held the lock without a break for `settle`. Before that, it buries no pod.
    pub(crate) fn is_settled(&self, lock: &LivenessLock) -> bool {
        clock::now().saturating_sub(lock.since) >= self.timing.settle
    }

    /// L2: from when this pod may bury a peer. If the peer's runs may go on for longer than those of an equal peer, it
    /// is later.
    fn may_bury_from(&self, lock: &LivenessLock, peer: &PeerProbe) -> Moment {
        if peer.stopped { lock.since } else { may_bury_from(lock.since, self.timing.patience(), peer.stated) }
    }

    /// L2: whether this pod has held the lock without a break for as long as this peer may need. A peer that has stopped
    /// never comes back, so it needs no time.
    pub(crate) fn is_settled_for(&self, lock: &LivenessLock, peer: &PeerProbe) -> bool {
        clock::now() >= self.may_bury_from(lock, peer)
    }

    /// How long after a session was opened its statements of a burial should be prepared: now if this pod may bury.
    /// Otherwise at a random moment before it may. After a start or a restart of the database, the server has enough to
    /// do for the pods that come in.
    pub(crate) fn warm_up_delay(&self) -> Duration {
        let Some(lock) = self.lock() else { return self.timing.settle / 2 };
        let settled_in = self.timing.settle.saturating_sub(clock::now().saturating_sub(lock.since));
        settled_in.mul_f64(WARM_UP_FROM + (WARM_UP_UPTO - WARM_UP_FROM) * fastrand::f64())
    }

    /// Warns once if one poison run could crash as many pods as there are. Does so when this pod has been up for
    /// `settle`, so that the other pods had time to start.
    pub(crate) fn weigh_fleet(&self, lock: &LivenessLock) {
        if !self.is_settled(lock) || self.fleet_was_weighed.replace(true) {
            return;
        }
        let (pods, max_crashes) = (self.alive.get() + 1, self.shared.member.settings.max_crashes);
        if poison::outnumbers(max_crashes, pods) {
            tracing::warn!(
                target: "podlock", event = "max_crashes_high", pod = %self.shared.member.pod_id, max_crashes, pods,
                "max_crashes is not below the number of pods: a run that takes down each pod that claims it can take \
                 down all but the last of them; lower max_crashes, or run more pods"
            );
        }
    }

    pub(crate) fn proof(&self, lock: &LivenessLock) -> Proof {
        Proof { incarnation: lock.incarnation, lock: self.keys.lock, liveness: lock.backend }
    }

    /// Notes that a roster probe is complete, and how long it took.
    pub(crate) fn note_probe(&self, took: Duration) {
        let [_, last] = self.looks_took.get();
        self.looks_took.set([last, took]);
    }

    /// Decides on a roster probe and remembers it.
    pub(crate) fn decide(&self, probe: &RosterProbe) -> Decision {
        let buried = self.buried.borrow();
        let shown: Vec<&PeerRow> = probe.peers.iter().filter(|p| !buried.1.contains(&p.probe.incarnation)).collect();
        let peers: Vec<PeerProbe> = shown.iter().map(|p| p.probe.clone()).collect();
        let now = clock::now();
        let alive = peers.iter().filter(|peer| !peer.liveness_free && !probe.unknown.contains(&peer.incarnation));
        self.alive.set(alive.clone().count());
        let is_held = |peer: &PeerProbe| !peer.liveness_free && !probe.unknown.contains(&peer.incarnation);
        self.steady.borrow_mut().note(peers.iter().map(|peer| (peer.incarnation, is_held(peer))));
        self.shared.member.note_companions(alive.map(|peer| peer.incarnation));
        self.shared.member.note_peers(self.peers_at_most());
        let mut timing = self.timing.over(&self.looks_took.get());
        let since_last = now.saturating_sub(self.decided_at.replace(now));
        if !neighbours::are_all(self.peers()) && !self.observer.borrow().in_sight().is_empty() {
            timing = timing.reaching_back(since_last);
        }
        let decision = self.observer.borrow().decide_in_part(&timing, now, &peers, &probe.unknown);
        self.remember_waits(&decision, now, &peers);
        let before = self.observer.replace(decision.observer.clone());
        // The dead that this pod may not bury yet are probed again when it may. A pod that may bury other pods probes
        // them until then. A pod that may bury no pod (a whole fleet may be like that) makes one more probe, at that
        // moment.
        let lock = self.lock();
        let dead: BTreeSet<_> = decision.dead().map(|(incarnation, _)| incarnation).collect();
        let to_wait_for = peers.iter().filter(|peer| dead.contains(&peer.incarnation));
        let due = to_wait_for.filter_map(|peer| lock.map(|lock| self.may_bury_from(&lock, peer)));
        let due = due.filter(|due| *due > now).min();
        let settled = lock.is_some_and(|lock| self.is_settled(&lock));
        self.next_probe.set(decision.next_probe().into_iter().chain(due.filter(|_| settled)).min());
        self.may_bury_at.set(due.filter(|_| !settled));
        let half_free = peers.iter().filter(|peer| peer.liveness_free && !peer.witness_free);
        self.half_free.replace(half_free.map(|peer| peer.incarnation).collect());
        let mut roster: Vec<_> = shown.iter().copied().map(place).collect();
        // Sorted, so that the same roster reads the same wherever the probe began.
        roster.sort_unstable_by_key(|place| place.lock_key);
        self.roster_version.set(probe.version.unwrap_or_default());
        let present: BTreeSet<_> = peers.iter().map(|p| p.incarnation).collect();
        self.told.borrow_mut().retain(|i| present.contains(i));
        let same_sight = before.in_sight() == decision.observer.in_sight();
        let roster_before = self.roster.replace(roster.clone());
        if roster_before.iter().any(|place| !present.contains(&place.incarnation)) {
            self.departed.set(Some(now));
        }
        if roster_before != roster || !same_sight {
            self.roster_changed.notify_one();
        }
        decision
    }

    /// Remembers the waits to report of this decision. A pod that holds no lock reports nothing.
    fn remember_waits(&self, decision: &Decision, now: Moment, peers: &[PeerProbe]) {
        let mut told = self.told_waits.borrow_mut();
        told.retain(|(incarnation, ..)| decision.observer.sighting(*incarnation).is_some());
        let peers: BTreeMap<_, _> = peers.iter().map(|peer| (peer.incarnation, peer)).collect();
        let waits = self.lock().map(|lock| {
            let may_bury_at = |i| peers.get(&i).map_or(lock.since, |peer| self.may_bury_from(&lock, peer));
            wait::waits(decision, now, may_bury_at, self.shared.member.settings.hold_probe_interval)
        });
        self.waits.replace(wait::next_to_tell(waits.unwrap_or_default(), &told));
    }

    /// The waits to report now.
    pub(crate) fn waits(&self) -> Vec<Wait> {
        self.waits.borrow().clone()
    }

    /// Notes that the event log reports these waits, written by this pod or by another.
    pub(crate) fn note_waits_told(&self, waits: &[Wait]) {
        self.told_waits.borrow_mut().extend(waits.iter().map(|wait| (wait.incarnation, wait.session, wait.reason)));
        self.waits.borrow_mut().clear();
    }

    /// Whether a dead peer is in sight that this pod may not bury yet and that the event log does not report.
    pub(crate) fn has_untold_dead(&self) -> bool {
        let Some(lock) = self.lock().filter(|lock| !self.is_settled(lock)) else { return false };
        let told = self.told_waits.borrow();
        if told.len() >= wait::MOST_IN_SIGHT {
            return false;
        }
        let is_told = |i: &Incarnation| told.iter().any(|(told, ..)| told == i);
        let in_sight = self.observer.borrow().in_sight();
        in_sight.iter().any(|i| *i != lock.incarnation && !is_told(i))
    }

    /// The times by which this pod judges an end that it saw: the peer's own, as far as its row states them.
    pub(crate) fn cause_timing(&self, peer: &PeerRow) -> cause::CauseTiming {
        let settings = &self.shared.member.settings;
        cause::CauseTiming {
            lease: settings.lease,
            ping_interval: settings.ping_interval,
            beat_interval: settings.beat_interval,
        }
        .of_peer(peer.probe.stated, peer.beat_interval)
    }

    /// The settings in which peers differ from this pod and that the log has not named, at most [`DIFFERENCES_MOST`]
    /// per roster probe. Forgets those of peers that are gone.
    pub(crate) fn note_differences<'a>(&self, probe: &'a RosterProbe) -> Vec<(&'a PodId, Difference)> {
        let settings = &self.shared.member.settings;
        let own = Comparable { stated: Some(settings.stated()), beat_interval: Some(settings.beat_interval) };
        let mut told = self.differences.borrow_mut();
        let names: BTreeSet<_> = probe.peers.iter().map(|peer| &peer.probe.pod_id).collect();
        told.retain(|(pod, ..)| names.contains(pod));
        let of_peer = |peer: &'a PeerRow| {
            let theirs = Comparable { stated: peer.probe.stated, beat_interval: peer.beat_interval };
            differences(own, theirs).into_iter().map(|difference| (&peer.probe.pod_id, difference))
        };
        let is_new =
            |(pod, (setting, _, theirs)): &(&PodId, Difference)| !told.contains(&((*pod).clone(), *setting, *theirs));
        let new: Vec<_> = probe.peers.iter().flat_map(of_peer).filter(is_new).take(DIFFERENCES_MOST).collect();
        told.extend(new.iter().map(|(pod, (setting, _, theirs))| ((*pod).clone(), *setting, *theirs)));
        new
    }

    /// Whether the burial of this peer waited because many were lost.
    pub(crate) fn was_held_for_many(&self, incarnation: Incarnation) -> bool {
        self.observer.borrow().sighting(incarnation).is_some_and(|sighting| sighting.many)
    }

    /// Decides on a check of the peers' beats and remembers it.
    pub(crate) fn observe_beats(&self, own: i64, beats: &[Beat]) -> Vec<Stalled> {
        let settings = &self.shared.member.settings;
        let timing = stall::StallTiming { interval: settings.beat_interval, cycles: settings.stall_cycles };
        let before = self.beats.take();
        let (stalled, observer) = before.look(&timing, clock::now(), own, beats);
        self.beats.replace(observer);
        stalled
    }

    /// The peers whose beats this pod checks: its neighbours in the ring, and all of them in a small fleet.
    pub(crate) fn neighbours(&self) -> Vec<Incarnation> {
        let (roster, in_sight) = (self.roster.borrow(), self.in_sight());
        let behind = roster.partition_point(|place| place.lock_key <= self.keys.lock);
        let (before, behind) = roster.split_at(behind);
        let peers = behind.iter().chain(before).map(|place| place.incarnation);
        peers.filter(|peer| !in_sight.contains(peer)).take(self.check_most.get()).collect()
    }

    /// Notes how many of the checked peers hold both of their locks. If they are few, dead pods whose locks strangers
    /// hold may hide the living behind them, so the next check goes further round the ring.
    pub(crate) fn note_attached(&self, attached: usize) {
        let (most, rows) = (self.check_most.get(), self.roster.borrow().len());
        let wanted = if attached < NEIGHBOURS { most.saturating_mul(2).min(rows) } else { most / 2 };
        self.check_most.set(wanted.max(NEIGHBOURS));
    }

    /// Whether it is this pod's turn to check for strangers, at a beat that showed its own `index`, and these peers as
    /// attached. If they are as many as a pod of a large fleet checks, the roster says who takes turns.
    pub(crate) fn is_turn(&self, own: Incarnation, index: i64, attached: &[Beat]) -> bool {
        let since_turn = self.beats_since_turn.get().saturating_add(1);
        let beaten = Beaten { own, index, since_turn };
        let is_turn = if attached.len() < NEIGHBOURS {
            turns::is_turn(&beaten, attached.iter().map(|peer| peer.incarnation))
        } else {
            let (roster, in_sight) = (self.roster.borrow(), self.in_sight());
            let alive = roster.iter().map(|place| place.incarnation).filter(|peer| !in_sight.contains(peer));
            turns::is_turn(&beaten, alive)
        };
        self.beats_since_turn.set(if is_turn { 0 } else { since_turn });
        is_turn
    }

    /// The foreign locks in `seen` that the event log does not report yet. Forgets the locks that are gone.
    pub(crate) fn untold_strangers<'a>(&self, seen: &'a [ForeignLock]) -> Vec<&'a ForeignLock> {
        let mut told = self.told_strangers.borrow_mut();
        let present: BTreeSet<_> = seen.iter().map(ForeignLock::told).collect();
        told.retain(|lock| present.contains(lock));
        seen.iter().filter(|lock| !told.contains(&lock.told())).collect()
    }

    /// Notes that the event log reports these locks, written by this pod or by another.
    pub(crate) fn note_strangers_told(&self, locks: &[&ForeignLock]) {
        self.told_strangers.borrow_mut().extend(locks.iter().map(|lock| lock.told()));
    }

    /// Notes the dead pods that a burial has just passed over. Returns those that were passed over for longer than a
    /// lease, each once.
    pub(crate) fn note_held_up(&self, passed_over: &[Incarnation]) -> Vec<(Incarnation, Duration)> {
        let (now, lease) = (clock::now(), self.shared.member.settings.lease);
        let mut held_up = self.held_up.borrow_mut();
        // A pod that was not passed over for a while is buried, or its row is free.
        held_up.retain(|incarnation, (since, _)| {
            passed_over.contains(incarnation) || now.saturating_sub(*since) < lease * 64
        });
        let mut long = Vec::new();
        for incarnation in passed_over {
            let (since, said) = held_up.entry(*incarnation).or_insert((now, false));
            let held_for = now.saturating_sub(*since);
            if held_for >= lease && !std::mem::replace(said, true) {
                long.push((*incarnation, held_for));
            }
        }
        long
    }

    /// Notes burials, by this pod or by another: these incarnations are gone for good.
    pub(crate) fn note_burials(&self, gone: &[Incarnation]) {
        let (now, timing) = (clock::now(), self.timing.over(&self.looks_took.get()));
        let mut buried = self.buried.borrow_mut();
        let (order, all) = &mut *buried;
        for incarnation in gone {
            self.observer.borrow_mut().note_burial(&timing, now, *incarnation);
            if all.insert(*incarnation) {
                order.push_back(*incarnation);
            }
        }
        while order.len() > REMEMBERED_BURIALS {
            let forgotten = order.pop_front();
            forgotten.map(|incarnation| all.remove(&incarnation));
        }
        self.roster.borrow_mut().retain(|p| !all.contains(&p.incarnation));
        self.departed.set(Some(now));
        self.waits.borrow_mut().retain(|wait| !all.contains(&wait.incarnation));
    }

    /// A portion that covers the whole roster as this pod last saw it, its own row included. `None`: the roster takes
    /// several portions.
    pub(crate) fn whole_roster(&self) -> Option<Portion> {
        let pace = self.pace.get();
        (self.roster.borrow().len() + 1 < pace.size()).then(|| pace.whole())
    }

    /// The lock keys of all other rows of the roster as this pod last saw them, in order.
    pub(crate) fn known_keys(&self) -> Vec<i64> {
        self.roster.borrow().iter().map(|place| place.lock_key.get()).collect()
    }

    /// How many living peers the fleet has, as the last whole probes showed. Rows of dead pods probe nothing, so they
    /// do not count.
    pub(crate) fn peers(&self) -> usize {
        let sure = self.steady.borrow().count();
        // A pod that may not bury yet may take the fleet for larger than it is: others find the dead.
        let is_settled = self.lock().is_some_and(|lock| self.is_settled(&lock));
        if is_settled { sure } else { sure.max(self.alive.get()) }
    }

    /// How many living peers the fleet may have: those that the last whole probe showed, or that count for certain.
    pub(crate) fn peers_at_most(&self) -> usize {
        self.peers().max(self.alive.get())
    }

    /// Whether the next sweep probes the whole roster, and not only this pod's neighbours.
    pub(crate) fn is_whole_due(&self) -> bool {
        neighbours::are_all(self.peers()) || self.next_whole.get().is_none_or(|at| at <= clock::now())
    }

    /// Plans the next whole probe, after one that was just made and decided on.
    pub(crate) fn plan_whole(&self) {
        self.whole_asked_until.set(Moment::ZERO);
        let (now, peers) = (clock::now(), self.peers());
        let sweep = neighbours::rarer(self.shared.member.settings.jittered_sweep(fastrand::f64()), peers);
        // A wait may end for many peers at once, and for all pods that saw their losses.
        let due = self.next_probe.get().into_iter().chain(self.may_bury_at.get()).min();
        let late = neighbours::spread(WHOLE_SPREAD, peers, fastrand::f64());
        // A peer that is past its wait, because somebody holds its lock, has no better moment.
        let overdue = neighbours::rarer(self.probe_interval(), peers);
        let due = due.map_or(now + sweep, |due| if due > now { due + late } else { now + overdue });
        self.next_whole.set(Some(due.min(now + sweep)));
    }

    /// Whether this pod has seen a further peer lost since `then`.
    pub(crate) fn has_lost_one_since(&self, then: Moment) -> bool {
        self.observer.borrow().newest_sighting().is_some_and(|newest| newest > then)
    }

    /// Notes that the server accepted no connection when these peers were about to be buried.
    pub(crate) fn note_closed_door(&self, lost: impl Iterator<Item = Incarnation>) {
        let until = lost.filter_map(|peer| self.observer.borrow_mut().note_closed_door(&self.timing, peer)).min();
        self.next_probe.set(self.next_probe.get().into_iter().chain(until).min());
    }

    /// Makes a whole probe due within `delay`.
    pub(crate) fn whole_within(&self, delay: Duration) {
        let at = clock::now() + delay;
        self.next_whole.set(Some(self.next_whole.get().map_or(at, |whole| whole.min(at))));
    }

    /// Makes a whole probe due within `delay`, which is random, because another pod asks for it. A further request
    /// before that moment changes nothing: requests at a high rate must not make the probe come sooner.
    pub(crate) fn whole_asked_for(&self, delay: Duration) {
        let now = clock::now();
        if self.whole_asked_until.get() > now {
            return;
        }
        self.whole_asked_until.set(now + delay);
        self.whole_within(delay);
    }

    /// Whether a probe of the neighbours shows something that a whole probe must decide on: a free lock of a peer that
    /// was not in sight or has returned since, the witness lock of a peer in sight that was held before, or a dead peer
    /// whose burial failed.
    pub(crate) fn must_look_at_all(&self, lock: &LivenessLock, probe: &RosterProbe) -> bool {
        let buries_again = self.next_probe.get().is_none() && self.is_settled(lock);
        let (buried, observer, half_free) = (self.buried.borrow(), self.observer.borrow(), self.half_free.borrow());
        let free = probe.peers.iter().map(|peer| &peer.probe).filter(|peer| peer.liveness_free);
        free.filter(|peer| !buried.1.contains(&peer.incarnation)).any(|peer| {
            observer.sighting(peer.incarnation).is_none_or(|seen| peer.session > seen.session)
                || (peer.witness_free && (buries_again || half_free.contains(&peer.incarnation)))
        })
    }

    /// Notes which neighbours this pod has now, and which of them have returned.
    pub(crate) fn note_neighbours(&self, probe: &RosterProbe, neighbours: &Neighbours) {
        let buried = self.buried.borrow();
        let probes: Vec<PeerProbe> = probe.peers.iter().map(|peer| peer.probe.clone()).collect();
        let in_sight = self.in_sight();
        self.observer.borrow_mut().note_returns(&probes);
        let same_sight = in_sight == self.in_sight();
        let mut roster = self.roster.borrow().clone();
        roster.retain(|place| !neighbours.covers(place.lock_key.get()));
        roster.extend(probe.peers.iter().filter(|p| !buried.1.contains(&p.probe.incarnation)).map(place));
        roster.sort_unstable_by_key(|place| place.lock_key);
        self.roster_version.set(probe.version.unwrap_or_default());
        if self.roster.replace(roster.clone()) != roster || !same_sight {
            self.roster_changed.notify_one();
        }
    }

    /// Returns the misnamed rows that this pod sees for the first time. Forgets those that are gone from the roster.
    pub(crate) fn note_misnamed(&self, seen: &[(Incarnation, String)]) -> Vec<Incarnation> {
        let mut known = self.misnamed.borrow_mut();
        let new = seen.iter().map(|(incarnation, _)| *incarnation).filter(|i| !known.contains(i)).collect();
        *known = seen.iter().map(|(incarnation, _)| *incarnation).collect();
        new
    }

    /// Whether this pod has told the others that this incarnation was lost.
    pub(crate) fn is_told(&self, incarnation: Incarnation) -> bool {
        self.told.borrow().contains(&incarnation)
    }

    pub(crate) fn note_told(&self, incarnations: Vec<Incarnation>) {
        self.told.borrow_mut().extend(incarnations);
    }

    /// How soon a peer whose burial waits must be probed again. `None`: no burial waits.
    pub(crate) fn hold_delay(&self) -> Option<Duration> {
        self.next_probe.get().map(|due| verdict::probe_delay(clock::now(), due, self.probe_interval()))
    }

    /// How often peers in sight are probed. In a large fleet, many peers in sight are probed more rarely: all pods see
    /// them, and each of them costs all pods.
    pub(crate) fn probe_interval(&self) -> Duration {
        let probe = self.shared.member.settings.hold_probe_interval;
        if neighbours::are_all(self.peers()) {
            return probe;
        }
        let in_sight = self.observer.borrow().in_sight().len();
        probe.saturating_mul(u32::try_from(in_sight.div_ceil(4)).unwrap_or(u32::MAX).max(1))
    }

    /// How soon this pod may bury a dead peer of the last roster probe. `None`: it waits for no such moment. Returns
    /// the time once per probe, so that a probe that fails at that moment is not repeated at once.
    pub(crate) fn take_bury_delay(&self) -> Option<Duration> {
        self.may_bury_at.take().map(|due| due.saturating_sub(clock::now()))
    }

    pub(crate) fn in_sight(&self) -> BTreeSet<Incarnation> {
        self.observer.borrow().in_sight()
    }

    /// Counts a read that a notice caused.
    pub(crate) fn note_hint(&self, kind: &'static str) {
        self.shared.member.note_hint(kind);
    }

    /// Notes that a watch session was granted a peer's lock. Its pod will bury the peer, unless it freezes.
    pub(crate) fn note_report(&self) {
        self.reported.set(Some(clock::now()));
    }

    /// Whether a reported peer is still in the roster, a while after a watch session found its lock free. As far as
    /// this pod can tell: no peer has gone since shortly before the report.
    pub(crate) fn is_report_open(&self) -> bool {
        let Some(reported) = self.reported.get() else { return false };
        let since = reported.saturating_sub(self.timing.second_probe);
        clock::now() < reported + BURIER_MAY_FREEZE && self.departed.get().is_none_or(|departed| departed < since)
    }

    pub(crate) fn successor(&self) -> Option<RingPlace> {
        let skip = self.observer.borrow().in_sight();
        ring::successor(self.keys.lock, &self.roster.borrow(), &skip).copied()
    }

    /// Whether a watch on this peer tells every pod if it finds the peer's lock free.
    pub(crate) fn tells_of(&self, watched: &RingPlace) -> bool {
        neighbours::tells_of(watched.lock_key, self.peers(), &self.roster.borrow(), &self.in_sight())
    }

    pub(crate) fn roster_version(&self) -> i64 {
        self.roster_version.get()
    }
}

/// The place of this peer in the ring.
fn place(peer: &PeerRow) -> RingPlace {
    RingPlace { incarnation: peer.probe.incarnation, lock_key: peer.keys.lock, witness_key: peer.keys.witness }
}
