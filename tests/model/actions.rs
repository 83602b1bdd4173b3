//! What can happen: one database transaction, one step of a process, or one fault each.

use podlock::protocol::Moment;
use podlock::protocol::deadline::Deadline;

use crate::mistakes::Mistake;
use crate::model::Podlock;
use crate::state::{Inc, Loss, Name, Phase, Proc, ProcId, State};
use crate::writer::{self, Kind};

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    // Steps of a process.
    Finish(ProcId, usize),
    Write(ProcId, usize),
    Yield(ProcId, usize),
    EndTask(ProcId, usize),
    Load(ProcId),
    Claim(ProcId),
    TakeLock(ProcId),
    ComeBack(ProcId),
    Register(ProcId),
    Notice(ProcId),
    PassDeadline(ProcId),
    Expire(ProcId),
    Probe(ProcId),
    DeleteDoomed(ProcId),
    Wait(ProcId),
    Settle(ProcId),
    Exit(ProcId),
    Send(ProcId, Kind),
    Alone(ProcId, usize),
    /// Of a batch under way. The bits are the rows that others have locked.
    Execute(usize, u8),
    // What handlers do. It is limited, as faults are.
    Call(ProcId, usize, Kind),
    DropCall(ProcId, usize),
    // Faults, and what operators do.
    ClaimWithoutReply(ProcId),
    LeaveWrite(ProcId, usize),
    LateWrite(ProcId),
    LoseAnswers(usize),
    Kill(ProcId),
    CutLiveness(ProcId),
    CutBoth(ProcId),
    Silence(ProcId),
    Stop(ProcId),
    Spawn(Name),
    Restart,
    Close,
    EndSessions(ProcId),
    Reopen,
    Lag,
    Failover,
}

/// The steps that a process, or a server that shuts down, may try in this state; those that would change nothing are
/// sorted out afterwards.
pub(crate) fn steps(s: &State, out: &mut Vec<Action>) {
    for (p, proc) in s.procs.iter().enumerate().filter(|(_, proc)| proc.lives()) {
        for r in 0..s.db.runs.len() {
            if proc.tasks[r].is_some() {
                out.extend([Action::Finish(p, r), Action::Write(p, r), Action::Yield(p, r), Action::EndTask(p, r)]);
            }
        }
        out.extend([Action::Load(p), Action::Claim(p), Action::TakeLock(p), Action::ComeBack(p), Action::Register(p)]);
        out.extend([
            Action::Notice(p),
            Action::PassDeadline(p),
            Action::Expire(p),
            Action::Probe(p),
            Action::DeleteDoomed(p),
        ]);
        out.extend([Action::Wait(p), Action::Settle(p), Action::Exit(p)]);
        if !proc.calls.is_empty() {
            out.extend(Kind::ALL.map(|kind| Action::Send(p, kind)));
            out.extend((0..proc.calls.len()).map(|nth| Action::Alone(p, nth)));
        }
    }
    writer::steps(s, out);
    if s.closing {
        out.extend((0..s.procs.len()).map(Action::EndSessions));
        out.push(Action::Reopen);
    }
}

/// The faults that are left.
pub(crate) fn faults(names: usize, s: &State, out: &mut Vec<Action>) {
    for (p, proc) in s.procs.iter().enumerate().filter(|(_, proc)| proc.lives()) {
        let budgets = [
            (s.left.lost_replies, Action::ClaimWithoutReply(p)),
            (s.left.late_writes, Action::LeaveWrite(p, 0)),
            (s.left.late_writes, Action::LeaveWrite(p, 1)),
            (u8::from(s.procs[p].late.is_some()), Action::LateWrite(p)),
            (s.left.kills, Action::Kill(p)),
            (s.left.cuts, Action::CutLiveness(p)),
            (s.left.cuts, Action::CutBoth(p)),
            (s.left.silences, Action::Silence(p)),
            (s.left.stops, Action::Stop(p)),
        ];
        out.extend(budgets.into_iter().filter(|(left, _)| *left > 0).map(|(_, action)| action));
        for r in (0..s.db.runs.len()).filter(|_| s.left.calls > 0) {
            out.extend(Kind::ALL.map(|kind| Action::Call(p, r, kind)));
        }
        if s.left.drops > 0 {
            out.extend((0..proc.calls.len()).map(|nth| Action::DropCall(p, nth)));
        }
    }
    writer::faults(s, out);
    if s.left.spawns > 0 {
        out.extend((0..names).map(Action::Spawn));
    }
    if s.left.restarts > 0 {
        out.push(Action::Restart);
    }
    if s.left.shutdowns > 0 && !s.closing {
        out.push(Action::Close);
    }
    if s.left.failovers > 0 {
        out.push(if s.standby.is_none() { Action::Lag } else { Action::Failover });
    }
}

impl Podlock {
    /// Does what an action does. A condition that does not hold leaves the state as it is, which is no step.
    pub(crate) fn apply(&self, s: &mut State, action: Action) {
        use Action::*;
        match action {
            Finish(p, r) => self.finish(s, p, r),
            Write(p, r) => self.write(s, p, r),
            Yield(p, r) => self.yield_run(s, p, r),
            EndTask(p, r) => end_task(&mut s.procs[p], r),
            Load(p) => self.load(s, p),
            Claim(p) => self.claim(s, p, true),
            TakeLock(p) => self.take_lock(s, p),
            ComeBack(p) => self.come_back(s, p),
            Register(p) => self.register(s, p),
            Notice(p) => self.notice(s, p),
            PassDeadline(p) => pass_deadline(&mut s.procs[p]),
            Expire(p) => self.expire(s, p),
            Probe(p) => self.probe(s, p),
            DeleteDoomed(p) => self.delete_doomed(s, p),
            Wait(p) => self.wait(s, p),
            Settle(p) => self.settle(s, p),
            Exit(p) => self.exit(s, p),
            Send(p, kind) => self.send(s, p, kind),
            Alone(p, nth) => self.alone(s, p, nth),
            Execute(nth, locked) => {
                s.left.locks -= u8::from(locked != 0);
                self.execute(s, nth, locked);
            }
            Call(p, r, kind) => self.call(s, p, r, kind),
            DropCall(p, nth) => self.drop_call(s, p, nth),
            LoseAnswers(nth) => self.lose_answers(s, nth),
            ClaimWithoutReply(p) if s.procs[p].pass.is_some() => {
                s.left.lost_replies -= 1;
                self.claim(s, p, false);
            }
            LeaveWrite(p, r) => self.leave_write(s, p, r),
            LateWrite(p) => self.late_write(s, p),
            Kill(p) => {
                s.left.kills -= 1;
                release(s, p);
                s.procs[p].end(Phase::Dead);
                s.hang_up(p);
            }
            CutLiveness(p) if self.holds(s, p) => {
                s.left.cuts -= 1;
                self.cut(s, p);
            }
            CutBoth(p) if self.holds(s, p) && s.witness[s.procs[p].name] == Some(p) => {
                s.left.cuts -= 1;
                self.cut(s, p);
                release(s, p);
            }
            Silence(p) if self.holds(s, p) && s.procs[p].phase == Phase::Attached => {
                s.left.silences -= 1;
                s.procs[p].silent = true;
            }
            Stop(p) => self.stop(s, p),
            Spawn(name) => {
                s.left.spawns -= 1;
                s.procs.push(Proc::booting(name));
            }
            Restart => {
                s.left.restarts -= 1;
                end_every_session(s);
            }
            Close => {
                s.left.shutdowns -= 1;
                s.closing = true;
            }
            EndSessions(p) => end_sessions(s, p),
            Reopen => {
                let none_is_left = s.liveness.iter().chain(&s.witness).all(Option::is_none);
                s.closing &= !none_is_left;
            }
            Lag => s.standby = Some(s.db.clone()),
            Failover => {
                s.left.failovers -= 1;
                if let Some(db) = s.standby.take() {
                    s.lost_commits |= db != s.db;
                    s.db = db;
                }
                end_every_session(s);
            }
            ClaimWithoutReply(_) | CutLiveness(_) | CutBoth(_) | Silence(_) => {}
        }
    }

    /// Whether the process's session holds its lock, in truth.
    pub(crate) fn holds(&self, s: &State, p: ProcId) -> bool {
        s.liveness[self.key(s.procs[p].name)] == Some(p)
    }

    /// A task ends, finished or told to stop, and leaves a write on its way: a statement, or a task of its handler.
    fn leave_write(&self, s: &mut State, p: ProcId, r: usize) {
        let Some(task) = s.procs[p].tasks[r].filter(|task| !s.procs[p].is_writing(task)) else { return };
        if s.procs[p].is_told(&task) {
            end_task(&mut s.procs[p], r);
        } else {
            self.finish(s, p, r);
        }
        if s.procs[p].tasks[r].is_none() {
            s.left.late_writes -= 1;
            s.procs[p].late = Some((r, task));
        }
    }

    fn cut(&self, s: &mut State, p: ProcId) {
        s.liveness[self.key(s.procs[p].name)] = None;
        s.procs[p].lost = Some(Loss::Cut);
        s.procs[p].silent = false;
        if s.procs[p].phase == Phase::Booting {
            // The boot fails, and with it goes its other session. The service begins it anew.
            release(s, p);
        }
    }

    /// The lease: the server ends the sessions of a silent pod, later than the pod's own deadline (L7).
    fn expire(&self, s: &mut State, p: ProcId) {
        let deadline_came_first = s.procs[p].has_given_up() || self.mistake == Some(Mistake::LeaseBeforeDeadline);
        if s.procs[p].silent && deadline_came_first {
            self.cut(s, p);
            s.procs[p].lost = Some(Loss::Silence);
            release(s, p);
        }
    }

    /// A boot waits for both locks; a return for the liveness lock, and its witness follows.
    fn take_lock(&self, s: &mut State, p: ProcId) {
        let (name, phase) = (s.procs[p].name, s.procs[p].phase);
        let key = self.key(name);
        // A return first ends the silent session that is its own.
        let own = phase == Phase::Detached && s.procs[p].silent && s.liveness[key] == Some(p);
        let free = (own || s.liveness[key].is_none()) && (phase == Phase::Detached || s.witness[name].is_none());
        if s.closing || !matches!(phase, Phase::Booting | Phase::Detached) || !free {
            return;
        }
        s.liveness[key] = Some(p);
        s.witness[name].get_or_insert(p);
        let proc = &mut s.procs[p];
        if own {
            proc.silent = false;
            proc.lost = Some(Loss::Silence);
        }
        if phase == Phase::Booting {
            proc.lost = None;
            // The mistake of L1: it is registered already.
            if proc.inc.is_some() {
                proc.phase = Phase::Attached;
            }
        }
    }

    /// The driver's connection ends: the process learns that its session did.
    fn notice(&self, s: &mut State, p: ProcId) {
        let held = self.holds(s, p);
        let proc = &mut s.procs[p];
        if proc.phase == Phase::Attached && (!held || proc.silent) {
            proc.phase = Phase::Detached;
            proc.settled = None;
            // Otherwise it keeps what is silent until it is back or has passed its deadline.
            if proc.silent && self.mistake == Some(Mistake::LetsGoUnanswered) {
                self.cut(s, p);
                s.procs[p].lost = Some(Loss::Silence);
                release(s, p);
            }
        }
    }

    /// L2: the next of the times has passed after which this process may bury one peer or another. Within such a time
    /// those whom it is for came back, or passed their deadlines.
    fn settle(&self, s: &mut State, p: ProcId) {
        let name = s.procs[p].name;
        let Some(next) = self.settles(name).filter(|time| Some(*time) > s.procs[p].settled).min() else { return };
        let next_for = |q: &Proc| self.patience(name, q.name).settle <= Moment::from_millis(u64::from(next));
        let waits_for = |q: &Proc| q.lives() && q.inc.is_some() && !q.has_given_up() && q.lost == Some(Loss::Restart);
        let others_had_time = !s.procs.iter().enumerate().any(|(i, q)| i != p && waits_for(q) && next_for(q));
        let may = others_had_time || self.mistake == Some(Mistake::NoSettle);
        let proc = &mut s.procs[p];
        if proc.phase == Phase::Attached && may {
            proc.settled = Some(next);
        }
    }

    /// An observer's own clock reaches the moment at which it is due to probe again. A hold as long as `settle`, or as
    /// long as the peer may run on, outlasts the peer's deadline: it is not over while somebody in its sight neither
    /// came back nor passed its own.
    fn wait(&self, s: &mut State, p: ProcId) {
        let proc = &s.procs[p];
        let Some(due) = proc.due.filter(|due| *due > proc.clock && proc.phase == Phase::Attached) else { return };
        let still_has_time = |q: &Proc, inc: Inc| {
            let row = s.db.roster[q.name].filter(|row| row.inc == inc);
            let sighting = proc.observer.sighting(crate::database::incarnation(inc));
            let long_over = sighting.is_some_and(|seen| {
                seen.first_seen + self.patience(proc.name, q.name).settle <= Moment::from_millis(u64::from(due))
            });
            let is_back = sighting.zip(row).is_none_or(|(seen, row)| i64::from(row.session) > seen.session);
            long_over && !is_back && q.lost.is_some() && !q.has_given_up()
        };
        let lives_in_sight = |q: &Proc| q.lives() && q.inc.is_some_and(|inc| still_has_time(q, inc));
        if !s.procs.iter().any(lives_in_sight) {
            s.procs[p].clock = due;
        }
    }

    /// A clean stop begins: the row is marked (L4), and no more work is taken.
    fn stop(&self, s: &mut State, p: ProcId) {
        if s.procs[p].draining || s.procs[p].inc.is_none() {
            return;
        }
        s.left.stops -= 1;
        s.procs[p].draining = true;
        if self.mistake != Some(Mistake::StopUnmarked) {
            self.mark_draining(s, p);
        }
        if self.mistake == Some(Mistake::StopCompleteTooEarly) {
            self.mark_stopped(s, p);
        }
    }

    /// It ends. First the row is marked once more, if the database answers; the sessions end last, and the row stays
    /// for a survivor to bury (L4).
    fn exit(&self, s: &mut State, p: ProcId) {
        let proc = &s.procs[p];
        if !proc.draining || proc.tasks.iter().any(Option::is_some) {
            return;
        }
        if self.mistake == Some(Mistake::StopDeletesRow) {
            let (name, inc) = (proc.name, proc.inc);
            s.db.roster[name].take_if(|row| Some(row.inc) == inc);
        } else if self.mark_stopped(s, p) {
            return;
        }
        release(s, p);
        s.procs[p].end(Phase::Stopped);
        s.hang_up(p);
    }
}

/// All sessions of a process end.
pub(crate) fn release(s: &mut State, p: ProcId) {
    for holder in s.liveness.iter_mut().chain(&mut s.witness) {
        holder.take_if(|h| *h == p);
    }
}

fn end_every_session(s: &mut State) {
    let State { liveness, witness, procs, .. } = s;
    for (p, proc) in procs.iter_mut().enumerate().filter(|(_, proc)| proc.lives()) {
        if proc.inc.is_some() || liveness.contains(&Some(p)) {
            proc.lost = Some(Loss::Restart);
            proc.silent = false;
        }
    }
    liveness.fill(None);
    witness.fill(None);
}

/// The database ends the sessions of one process.
fn end_sessions(s: &mut State, p: ProcId) {
    if s.liveness.contains(&Some(p)) || s.witness.contains(&Some(p)) {
        s.procs[p].lost = Some(Loss::Restart);
        s.procs[p].silent = false;
        release(s, p);
    }
}

/// L7: a process whose session is gone passes its deadline, by its own clock.
fn pass_deadline(proc: &mut Proc) {
    let self_fence = Moment::from_millis(8);
    let last_answered = Moment::ZERO;
    let now = if proc.lost.is_some() || proc.silent { last_answered + self_fence } else { last_answered };
    if proc.inc.is_some() && Deadline::new(last_answered, self_fence).has_passed(now) {
        proc.given_up = proc.inc;
    }
}

/// A task that was told to stop ends, with every statement of it.
fn end_task(proc: &mut Proc, r: usize) {
    if proc.tasks[r].is_some_and(|task| proc.is_told(&task)) {
        proc.tasks[r] = None;
    }
}
