//! The writer of a pod: it sends the writes of several attempts in one statement, a *batch*.
//!
//! A call of an attempt waits in the lane of its kind. Then it is made alone, or a batch takes all that wait in the
//! lane. The server executes a batch at any later time: after the burial of its pod, after a claim of its run, after
//! the end of its attempt. Each row has conditions of its own. A row that another transaction has locked is skipped. A
//! write that a batch did not make is made alone, and learns there whether its attempt is fenced. If the reply of a
//! batch does not come, each of its calls is repeated under the same number.

use crate::actions::Action;
use crate::mistakes::Mistake;
use crate::model::Podlock;
use crate::properties::Rule;
use crate::state::{Claim, Fence, Inc, Proc, ProcId, Run, State, Task};

/// The kinds of writes. A batch has one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Checkpoint,
    End,
    Yield,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Checkpoint, Self::End, Self::Yield];
}

/// A write, as the statement has it. `claim` is for the rules only: the database knows owner and fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Write {
    pub(crate) run: usize,
    pub(crate) claim: Claim,
    /// Its number among the writes of its attempt.
    pub(crate) number: u8,
    pub(crate) kind: Kind,
    inc: Inc,
    fence: Fence,
}

/// Where a call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// In the lane of its kind.
    Waits,
    /// In a batch that is under way.
    Sent,
    /// Its batch did not make it. It is made alone.
    LeftOut,
}

/// A call of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Call {
    pub(crate) write: Write,
    pub(crate) stage: Stage,
    /// Whether the database made the write, in truth.
    made: bool,
    /// An earlier call that ends the run was dropped.
    perhaps_ended: bool,
}

/// A batch on its way to the server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Statement {
    pub(crate) sender: ProcId,
    /// In the order of the runs, as the statement locks their rows.
    pub(crate) writes: Vec<Write>,
    /// Its sender waits for the reply.
    pub(crate) is_awaited: bool,
}

/// What the caller of a write learns.
#[derive(Clone, Copy)]
enum Told {
    Written,
    Fenced,
}

impl Proc {
    /// Whether a call of this attempt has no answer yet. An attempt makes its writes one after another.
    pub(crate) fn is_writing(&self, task: &Task) -> bool {
        self.calls.iter().any(|call| call.write.claim == task.claim)
    }
}

impl State {
    /// The process has ended. Nobody waits for its batches any more, and the server still has them.
    pub(crate) fn hang_up(&mut self, p: ProcId) {
        for statement in self.under_way.iter_mut().filter(|statement| statement.sender == p) {
            statement.is_awaited = false;
        }
        self.under_way.sort();
    }
}

/// The server answers those who wait.
pub(crate) fn steps(s: &State, out: &mut Vec<Action>) {
    let awaited = s.under_way.iter().enumerate().filter(|(_, statement)| statement.is_awaited);
    out.extend(awaited.map(|(nth, _)| Action::Execute(nth, 0)));
}

/// What may go wrong with a batch under way.
pub(crate) fn faults(s: &State, out: &mut Vec<Action>) {
    for (nth, statement) in s.under_way.iter().enumerate() {
        if !statement.is_awaited {
            // It may arrive some day, or never.
            out.push(Action::Execute(nth, 0));
            continue;
        }
        if s.left.lost_answers > 0 {
            out.push(Action::LoseAnswers(nth));
        }
        if s.left.locks > 0 {
            let rows = statement.writes.iter().fold(0_u8, |rows, write| rows | 1 << write.run);
            out.extend((1..=rows).filter(|locked| locked & !rows == 0).map(|locked| Action::Execute(nth, locked)));
        }
    }
}

impl Podlock {
    /// A task calls for a write.
    pub(crate) fn call(&self, s: &mut State, p: ProcId, r: usize, kind: Kind) {
        let proc = &mut s.procs[p];
        let Some(task) = proc.tasks[r].filter(|task| !task.fenced && !proc.is_writing(task)) else { return };
        let is_present = !proc.has_given_up() && proc.inc == Some(task.inc);
        let is_undrained_yield = kind == Kind::Yield && !proc.draining;
        let may = match kind {
            // The rules must hold by the fence alone, even if a task goes on that was told to stop.
            Kind::Checkpoint => true,
            Kind::End => is_present,
            Kind::Yield => is_present && (proc.draining || s.left.yields > 0),
        };
        if !may {
            return;
        }
        s.left.calls -= 1;
        s.left.yields -= u8::from(is_undrained_yield);
        let Task { inc, fence, claim, perhaps_ended, .. } = task;
        let number = task.number + 1;
        proc.tasks[r] = Some(Task { number, ..task });
        let write = Write { run: r, claim, number, kind, inc, fence };
        proc.calls.push(Call { write, stage: Stage::Waits, made: false, perhaps_ended });
        proc.calls.sort();
    }

    /// The writer sends what waits in a lane, unless its pod is past its deadline (L7).
    pub(crate) fn send(&self, s: &mut State, p: ProcId, kind: Kind) {
        let proc = &mut s.procs[p];
        if proc.has_given_up() {
            return;
        }
        let mut writes = Vec::new();
        for call in proc.calls.iter_mut().filter(|c| c.stage == Stage::Waits && c.write.kind == kind) {
            call.stage = Stage::Sent;
            writes.push(call.write);
        }
        if !writes.is_empty() {
            proc.calls.sort();
            s.under_way.push(Statement { sender: p, writes, is_awaited: true });
            s.under_way.sort();
        }
    }

    /// The server executes a batch. Other transactions have locked the rows `locked`. The sender gets the answers, if
    /// it still waits for them.
    pub(crate) fn execute(&self, s: &mut State, nth: usize, locked: u8) {
        let statement = s.under_way.remove(nth);
        let mut made = Vec::new();
        for (row, write) in statement.writes.iter().enumerate() {
            let run = s.db.runs[write.run];
            let is_locked = locked & 1 << write.run != 0;
            let is_made = match self.mistake {
                Some(Mistake::AllOrNothing) if row > 0 => made[0],
                _ => !is_locked && self.takes(&run, write, row),
            };
            if !is_made && !is_locked && is_sound(&run, write) {
                Rule::NeighbourIsMade.broken(s);
            }
            if is_made {
                make(s, write);
            }
            made.push(is_made);
        }
        if statement.is_awaited {
            self.answer(s, &statement, &made);
        }
    }

    fn answer(&self, s: &mut State, Statement { sender, writes, .. }: &Statement, made: &[bool]) {
        for (write, is_made) in writes.iter().zip(made) {
            // A call that was dropped hears nothing.
            let Some(nth) = s.procs[*sender].calls.iter().position(|call| call.write == *write) else { continue };
            let made_of_run = || writes.iter().zip(made).any(|(w, is_made)| w.run == write.run && *is_made);
            if *is_made || (self.mistake == Some(Mistake::AnswersByRun) && made_of_run()) {
                tell(s, *sender, nth, Told::Written);
            } else if self.mistake == Some(Mistake::LeftOutIsFenced) {
                tell(s, *sender, nth, Told::Fenced);
            } else {
                s.procs[*sender].calls[nth].stage = Stage::LeftOut;
            }
        }
        s.procs[*sender].calls.sort();
    }

    /// A call makes its write alone. If the database does not take the write, the call looks at the row: an earlier try
    /// may have been made.
    pub(crate) fn alone(&self, s: &mut State, p: ProcId, nth: usize) {
        let proc = &s.procs[p];
        let Call { write, stage, perhaps_ended, .. } = proc.calls[nth];
        if proc.has_given_up() || stage == Stage::Sent {
            return;
        }
        let run = s.db.runs[write.run];
        if self.takes(&run, &write, 0) {
            make(s, &write);
            return tell(s, p, nth, Told::Written);
        }
        let may_be_another = perhaps_ended && self.mistake != Some(Mistake::EndOfAnotherCall);
        let was_made = match write.kind {
            Kind::Checkpoint => false,
            Kind::End => run.finished && run.owner == Some(write.inc) && run.fence == write.fence && !may_be_another,
            Kind::Yield => !run.finished && run.owner.is_none() && run.fence == write.fence,
        };
        tell(s, p, nth, if was_made { Told::Written } else { Told::Fenced });
    }

    /// The reply of a batch does not come: each of its writes is in doubt, and is repeated. The batch may still arrive.
    pub(crate) fn lose_answers(&self, s: &mut State, nth: usize) {
        s.left.lost_answers -= 1;
        let statement = &mut s.under_way[nth];
        statement.is_awaited = false;
        let calls = &mut s.procs[statement.sender].calls;
        for call in calls.iter_mut().filter(|call| statement.writes.contains(&call.write)) {
            call.stage = Stage::Waits;
        }
        calls.sort();
        s.under_way.sort();
    }

    /// A call is dropped. Its write stays in the batch, if it was sent.
    pub(crate) fn drop_call(&self, s: &mut State, p: ProcId, nth: usize) {
        let proc = &mut s.procs[p];
        let Call { write, .. } = proc.calls[nth];
        // Nothing drops a yield: it is the last that an attempt does.
        if write.kind == Kind::Yield {
            return;
        }
        s.left.drops -= 1;
        proc.calls.remove(nth);
        if let Some(task) = proc.tasks[write.run].as_mut().filter(|task| task.claim == write.claim) {
            task.perhaps_ended |= write.kind == Kind::End;
        }
    }

    /// Whether the database takes a write. `row`: its place in the statement.
    fn takes(&self, run: &Run, write: &Write, row: usize) -> bool {
        let is_owner = match self.mistake {
            Some(Mistake::NoFenceInOneRow) if row > 0 => run.owner == Some(write.inc),
            _ => self.is_owner(run, write.inc, write.fence),
        };
        let goes_on = !run.finished || (self.mistake == Some(Mistake::EndsAgain) && write.kind == Kind::End);
        let is_in_order = write.kind != Kind::Checkpoint
            || run.written <= write.number
            || self.mistake == Some(Mistake::RepeatWithoutNumber);
        is_owner && goes_on && is_in_order
    }
}

/// Whether the write's attempt has the run, in truth.
fn has_run(run: &Run, claim: Claim, inc: Inc) -> bool {
    run.claim == claim && run.owner == Some(inc) && !run.finished
}

/// Whether the database must take the write.
fn is_sound(run: &Run, write: &Write) -> bool {
    has_run(run, write.claim, write.inc) && (write.kind != Kind::Checkpoint || run.written <= write.number)
}

/// Whether the write's attempt no longer has its run.
pub(crate) fn is_stale(s: &State, write: &Write) -> bool {
    !has_run(&s.db.runs[write.run], write.claim, write.inc)
}

/// The database makes a write.
fn make(s: &mut State, write: &Write) {
    let run = &mut s.db.runs[write.run];
    let before = *run;
    match write.kind {
        Kind::Checkpoint => run.written = write.number,
        Kind::End => run.finished = true,
        Kind::Yield => run.owner = None,
    }
    if before.claim != write.claim {
        Rule::OneWriter.broken(s);
    } else if write.kind == Kind::Checkpoint && before.written > write.number {
        Rule::NoWriteGoesBack.broken(s);
    }
    if write.kind == Kind::End && before.finished {
        Rule::EndsOnce.broken(s);
    }
    let calls = s.procs.iter_mut().flat_map(|proc| &mut proc.calls);
    calls.filter(|call| call.write == *write).for_each(|call| call.made = true);
}

/// The caller gets its answer.
fn tell(s: &mut State, p: ProcId, nth: usize, told: Told) {
    let Call { write, made, .. } = s.procs[p].calls.remove(nth);
    match told {
        Told::Written => {
            if !made {
                Rule::ToldWhatIsTrue.broken(s);
            }
            if write.kind != Kind::Checkpoint {
                s.procs[p].tasks[write.run].take_if(|task| task.claim == write.claim);
            }
        }
        Told::Fenced => {
            judge_refusal(s, write.run, write.claim, write.inc);
            if let Some(task) = s.procs[p].tasks[write.run].as_mut().filter(|task| task.claim == write.claim) {
                task.fenced = true;
            }
        }
    }
}

/// An attempt is told that it is fenced.
pub(crate) fn judge_refusal(s: &mut State, r: usize, claim: Claim, inc: Inc) {
    if has_run(&s.db.runs[r], claim, inc) {
        Rule::OnlyTheStaleAreFenced.broken(s);
    }
}
