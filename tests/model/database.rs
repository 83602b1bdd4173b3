//! The transactions on the roster, each as one step: register, come back, mark draining, probe and bury.
//!
//! The functions of `src/protocol` decide here what they decide in the library: who is dead, why an incarnation ended,
//! and what the log folds to.

use std::time::Duration;

use podlock::protocol::ending::{self, Reason};
use podlock::protocol::fold::{self, LogEntry};
use podlock::protocol::patience::{Patience, Stated, may_bury_from, patience_for};
use podlock::protocol::verdict::{LossObserver, PeerProbe, VerdictTiming};
use podlock::{Incarnation, PodId};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::actions::release;
use crate::mistakes::Mistake;
use crate::model::Podlock;
use crate::properties::Rule;
use crate::state::{Inc, Loss, Name, Phase, ProcId, Row, State};

/// The usual lease: times are in fortieths of it.
const LEASE: Duration = Duration::from_millis(40);

/// An incarnation as the rules know it.
pub(crate) fn incarnation(inc: Inc) -> Incarnation {
    Uuid::from_u128(u128::from(inc) + 1).into()
}

fn millis(time: Duration) -> u16 {
    u16::try_from(time.as_millis()).unwrap_or(u16::MAX)
}

fn number(incarnation: Incarnation) -> Inc {
    u8::try_from(incarnation.as_uuid().as_u128() - 1).expect("an incarnation of the model")
}

fn pod_id(name: Name) -> PodId {
    PodId::new(["a", "b", "c"][name]).expect("a name")
}

/// An event that a transaction appends: what, about which name and incarnation, with which detail.
type Event = (&'static str, Name, Inc, Value);

impl Podlock {
    fn lease(&self, name: Name) -> Duration {
        if self.config.longer == Some(name) { LEASE * 2 } else { LEASE }
    }

    /// The times by which a pod of this name decides, in the proportions that the library has by default.
    pub(crate) fn timing(&self, name: Name) -> VerdictTiming {
        let lease = self.lease(name);
        VerdictTiming { window: lease / 10, second_probe: lease / 40, reconnect_grace: lease, settle: lease }
    }

    /// What its row says.
    fn stated(&self, name: Name) -> Stated {
        let lease = self.lease(name);
        Stated { lease, self_fence: lease * 4 / 5 }
    }

    /// How long a pod of this name waits for one of that name.
    pub(crate) fn patience(&self, name: Name, peer: Name) -> Patience {
        patience_for(self.timing(name).patience(), Some(self.stated(peer)))
    }

    /// The times for which a pod of this name must have held its lock before it may bury one peer or another (L2).
    pub(crate) fn settles(&self, name: Name) -> impl Iterator<Item = u16> + '_ {
        let own = self.timing(name).settle;
        (0..self.config.names).map(move |peer| self.patience(name, peer).settle).chain([own]).map(millis)
    }

    /// Registers a new incarnation, in the place of whatever bears the name.
    pub(crate) fn register(&self, s: &mut State, p: ProcId) {
        let proc = &s.procs[p];
        let name = proc.name;
        let due = match proc.phase {
            Phase::Booting => proc.inc.is_none(),
            Phase::Detached => proc.has_given_up(),
            Phase::Attached | Phase::Stopped | Phase::Dead => false,
        };
        let holds = self.holds(s, p) && !proc.silent;
        let booting = proc.phase == Phase::Booting;
        let allowed = holds
            || (self.mistake == Some(Mistake::RowBeforeLock) && booting)
            || (self.mistake == Some(Mistake::RowThroughPool) && booting && proc.lost.is_some());
        if !due || !allowed {
            return;
        }
        let other_has_key =
            |(n, row): (Name, &Option<Row>)| n != name && row.is_some() && self.key(n) == self.key(name);
        if self.mistake != Some(Mistake::SharedKey) && s.db.roster.iter().enumerate().any(other_has_key) {
            // The UNIQUE constraint: a clear error, which ends the boot.
            release(s, p);
            s.procs[p].end(Phase::Dead);
            return;
        }
        let inc = s.next_inc;
        s.next_inc += 1;
        let before = s.db.roster.clone();
        let mut detail = json!({});
        if let Some(former) = before[name] {
            self.lose_row(s, former);
            let reason = ending::replaced(former.draining, s.procs[p].given_up == Some(former.inc), None);
            check_reason(s, former, reason);
            detail = json!({ "replaced": incarnation(former.inc).to_string(), "reason": reason.as_str() });
        }
        s.db.roster[name] = Some(Row { inc, session: 1, draining: false, stopped: false, backend: p });
        let proc = &mut s.procs[p];
        proc.inc = Some(inc);
        if holds || self.mistake == Some(Mistake::RowThroughPool) {
            proc.phase = Phase::Attached;
            proc.lost = None;
        }
        proc.settled = None;
        let mut events: Vec<Event> = vec![("joined", name, inc, detail)];
        if proc.draining {
            s.db.roster[name] = Some(Row { inc, session: 1, draining: true, stopped: false, backend: p });
            events.push(("draining", name, inc, json!({})));
        }
        check_log(s, &before, &events);
    }

    /// A detached process that holds its lock again: if its row is there it goes on, otherwise it was buried.
    pub(crate) fn come_back(&self, s: &mut State, p: ProcId) {
        let proc = &s.procs[p];
        let Some(inc) = proc.inc.filter(|_| proc.phase == Phase::Detached && !proc.has_given_up()) else { return };
        if !self.holds(s, p) || proc.silent {
            return;
        }
        let (name, before) = (proc.name, s.db.roster.clone());
        if let Some(row) = s.db.roster[name].as_mut().filter(|row| row.inc == inc) {
            row.session += 1;
            row.backend = p;
            let session = row.session;
            let events = [("detached", name, inc, json!({})), ("returned", name, inc, json!({ "session": session }))];
            check_log(s, &before, &events);
        } else if self.mistake != Some(Mistake::BuryWithoutRow) {
            s.procs[p].given_up = Some(inc);
            return;
        }
        let proc = &mut s.procs[p];
        proc.phase = Phase::Attached;
        proc.lost = None;
        proc.settled = None;
    }

    pub(crate) fn mark_draining(&self, s: &mut State, p: ProcId) {
        let (name, inc) = (s.procs[p].name, s.procs[p].inc);
        let before = s.db.roster.clone();
        if let Some(row) = s.db.roster[name].as_mut().filter(|row| Some(row.inc) == inc && !row.draining) {
            row.draining = true;
            let event = ("draining", name, row.inc, json!({}));
            check_log(s, &before, &[event]);
        }
    }

    /// Records that the clean stop is complete. Returns false if there is nothing to record.
    pub(crate) fn mark_stopped(&self, s: &mut State, p: ProcId) -> bool {
        let (name, inc) = (s.procs[p].name, s.procs[p].inc);
        let marked = s.db.roster[name].as_mut().filter(|row| Some(row.inc) == inc && row.draining && !row.stopped);
        let Some(row) = marked else { return false };
        row.stopped = true;
        true
    }

    /// One transaction: take the locks of the whole roster, decide, prove, delete, record (L2, L3).
    pub(crate) fn probe(&self, s: &mut State, p: ProcId) {
        let proc = &s.procs[p];
        let Some(inc) = proc.inc.filter(|_| proc.phase == Phase::Attached) else { return };
        let peers: Vec<PeerProbe> =
            s.db.roster.iter().enumerate().filter_map(|(n, row)| self.seen(s, n, (*row)?)).collect();
        let peers: Vec<_> = peers.into_iter().filter(|peer| peer.incarnation != incarnation(inc)).collect();
        let is_news = peers.iter().any(|peer| peer.liveness_free) || !proc.observer.in_sight().is_empty();
        if is_news {
            self.conclude(s, p, &peers);
        }
        let proc = &mut s.procs[p];
        if s.db.roster[proc.name].is_none_or(|row| row.inc != inc) && self.mistake != Some(Mistake::BuryWithoutRow) {
            // Its own row is gone: the incarnation is given up, and the session with it.
            proc.given_up = Some(inc);
            proc.phase = Phase::Detached;
            proc.settled = None;
            proc.lost = proc.lost.or(Some(Loss::Cut));
            let key = self.key(proc.name);
            s.liveness[key].take_if(|h| *h == p);
        }
    }

    fn seen(&self, s: &State, name: Name, row: Row) -> Option<PeerProbe> {
        let liveness_free = s.liveness[self.key(name)].is_none();
        Some(PeerProbe {
            pod_id: pod_id(name),
            incarnation: incarnation(row.inc),
            session: i64::from(row.session),
            draining: row.draining,
            stopped: row.stopped,
            liveness_free,
            witness_free: liveness_free && s.witness[name].is_none(),
            stated: (self.mistake != Some(Mistake::OwnGrace)).then(|| self.stated(name)),
        })
    }

    fn conclude(&self, s: &mut State, p: ProcId, peers: &[PeerProbe]) {
        let proc = &s.procs[p];
        let now = Duration::from_millis(u64::from(proc.clock));
        let timing = self.timing(proc.name);
        let timing = match self.mistake {
            Some(Mistake::NoGrace) => VerdictTiming { reconnect_grace: Duration::ZERO, ..timing },
            _ => timing,
        };
        let decision = proc.observer.decide(&timing, now, peers);
        let mut observer = decision.observer.clone();
        let settled = proc.settled;
        let has_stopped = |dead: &Incarnation| peers.iter().any(|peer| peer.incarnation == *dead && peer.stopped);
        let is_settled_for = |dead: &Incarnation| {
            let peer = peers.iter().find(|peer| peer.incarnation == *dead);
            let stated = peer.and_then(|peer| peer.stated).filter(|_| self.mistake != Some(Mistake::OwnSettle));
            let needed = may_bury_from(Duration::ZERO, timing.patience(), stated);
            settled.is_some_and(|held_for| Duration::from_millis(u64::from(held_for)) >= needed)
        };
        for (dead, evidence) in decision.dead().filter(|(dead, _)| has_stopped(dead) || is_settled_for(dead)) {
            let knocks = self.mistake != Some(Mistake::BuriesBehindAClosedDoor) && !has_stopped(&dead);
            if s.closing && knocks && !evidence.outlasts_a_closed_door(&timing, self.stated_of(peers, dead)) {
                observer.note_closed_door(&timing, dead);
                continue;
            }
            if self.mistake == Some(Mistake::DeleteByName) {
                s.procs[p].doomed = s.db.roster.iter().position(|r| r.is_some_and(|r| incarnation(r.inc) == dead));
            } else if self.is_proven(s, p) {
                self.bury(s, p, number(dead));
                observer.note_burial(&timing, now, dead);
            }
        }
        let due = decision.next_probe().map(millis);
        let proc = &mut s.procs[p];
        // Nobody in sight any more: what else it remembers could only make it hold longer, and ages within a window.
        let empty = observer.in_sight().is_empty();
        (proc.observer, proc.clock, proc.due) =
            if empty { (LossObserver::default(), 0, None) } else { (observer, proc.clock, due) };
    }

    fn stated_of(&self, peers: &[PeerProbe], dead: Incarnation) -> Option<Stated> {
        peers.iter().find(|peer| peer.incarnation == dead).and_then(|peer| peer.stated)
    }

    /// L2: its own session holds its own key, and its own row is there and names that session.
    fn is_proven(&self, s: &State, p: ProcId) -> bool {
        let proc = &s.procs[p];
        let row = s.db.roster[proc.name].is_some_and(|row| Some(row.inc) == proc.inc && row.backend == p);
        match self.mistake {
            Some(Mistake::ProofByTryLock) => row && s.liveness[self.key(proc.name)].is_some(),
            Some(Mistake::BuryWithoutRow) => self.holds(s, p),
            _ => row && self.holds(s, p),
        }
    }

    fn bury(&self, s: &mut State, p: ProcId, dead: Inc) {
        let Some(name) = s.db.roster.iter().position(|row| row.is_some_and(|row| row.inc == dead)) else { return };
        let before = s.db.roster.clone();
        let Some(row) = s.db.roster[name].take() else { return };
        let burier = &s.procs[p];
        let is_member = burier.inc.is_some_and(|inc| s.is_member(inc));
        if !is_member || !self.holds(s, p) {
            Rule::OnlyTheLivingBury.broken(s);
        }
        self.lose_row(s, row);
        self.judge_burial(s, row);
        let reason = ending::buried(row.draining, None);
        check_reason(s, row, reason);
        if self.mistake.is_some_and(Mistake::remembers_burials) {
            s.db.buried |= 1 << dead;
        }
        if self.mistake == Some(Mistake::BurialInMemory) {
            s.procs[p].heir_of |= 1 << dead;
        }
        if self.mistake != Some(Mistake::BurialUnlogged) {
            check_log(s, &before, &[("buried", name, dead, json!({ "reason": reason.as_str() }))]);
        } else {
            check_log(s, &before, &[]);
        }
    }

    /// The second transaction of the mistake `DeleteByName`: deletes the row that has the name now.
    pub(crate) fn delete_doomed(&self, s: &mut State, p: ProcId) {
        let Some(name) = s.procs[p].doomed.take() else { return };
        if let Some(row) = s.db.roster[name].filter(|_| self.is_proven(s, p)) {
            self.bury(s, p, row.inc);
        }
    }

    /// A row leaves the roster, by burial or replacement.
    fn lose_row(&self, s: &mut State, row: Row) {
        let holds = |q: ProcId| s.procs[q].phase == Phase::Attached && self.holds(s, q);
        if s.process_of(row.inc).is_some_and(holds) {
            Rule::HolderKeepsItsRow.broken(s);
        }
    }

    fn judge_burial(&self, s: &mut State, row: Row) {
        let Some(q) = s.process_of(row.inc).filter(|q| s.procs[*q].lives()) else { return };
        // A process whose stop is complete executes nothing and takes no more work: nobody has to wait for it.
        let is_over = s.procs[q].draining && s.procs[q].tasks.iter().all(Option::is_none);
        if row.stopped && is_over {
            return;
        }
        let (lost, has_given_up) = (s.procs[q].lost, s.procs[q].has_given_up());
        if lost.is_none() {
            Rule::OnlyTheLostAreBuried.broken(s);
        }
        if lost == Some(Loss::Restart) && !has_given_up {
            Rule::RestartBuriesNobody.broken(s);
        }
        if s.witness[s.procs[q].name] == Some(q) && !has_given_up {
            Rule::BrokenConnectionIsNoDeath.broken(s);
        }
    }
}

/// A clean stop is recorded as one; a failover may have taken its mark back.
fn check_reason(s: &mut State, row: Row, reason: Reason) {
    let stopped = s.process_of(row.inc).is_some_and(|q| s.procs[q].phase == Phase::Stopped);
    if stopped && reason != Reason::Shutdown && !s.lost_commits {
        Rule::CleanStopIsNoCrash.broken(s);
    }
}

/// Whether the log goes on folding to the roster. A fold goes from left to right, so one that begins with entries that
/// make the former roster stands for the whole log before it.
fn check_log(s: &mut State, before: &[Option<Row>], events: &[Event]) {
    let mut log = Vec::new();
    let mut add = |(kind, name, inc, detail): Event| {
        let idx = i64::try_from(log.len()).unwrap_or(i64::MAX);
        log.push(LogEntry { idx, kind: kind.to_owned(), pod_id: pod_id(name), incarnation: incarnation(inc), detail });
    };
    for (name, row) in before.iter().enumerate() {
        let Some(row) = row else { continue };
        add(("joined", name, row.inc, json!({})));
        if row.session > 1 {
            add(("returned", name, row.inc, json!({ "session": row.session })));
        }
        if row.draining {
            add(("draining", name, row.inc, json!({})));
        }
    }
    events.iter().cloned().for_each(&mut add);
    let rows = s.db.roster.iter().enumerate().filter_map(|(name, row)| Some((pod_id(name), (*row)?)));
    let member = |row: Row| fold::Member {
        incarnation: incarnation(row.inc),
        draining: row.draining,
        session: i64::from(row.session),
    };
    let roster: fold::Roster = rows.map(|(name, row)| (name, member(row))).collect();
    if fold::fold(&log) != Ok(roster) {
        Rule::LogFoldsToRoster.broken(s);
    }
}
