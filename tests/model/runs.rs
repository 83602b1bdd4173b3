//! The transactions on runs: the two halves of a recovery pass, and what an owner writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use podlock::RunId;
use podlock::protocol::Moment;
use podlock::protocol::recover::{self, Candidate, Memory, Rules, Seen, Sightings};
use uuid::Uuid;

use crate::database::incarnation;
use crate::mistakes::Mistake;
use crate::model::Podlock;
use crate::properties::Rule;
use crate::state::{Fence, Inc, Loss, Pass, Phase, ProcId, Run, State, Task};
use crate::writer::judge_refusal;

/// All runs are of one kind.
static KIND: OnceLock<Arc<str>> = OnceLock::new();

fn run_id(r: usize) -> RunId {
    Uuid::from_u128(r as u128 + 1).into()
}

fn bits(runs: usize, is_set: impl Fn(RunId) -> bool) -> u8 {
    (0..runs).filter(|r| is_set(run_id(*r))).fold(0, |bits, r| bits | 1 << r)
}

impl Podlock {
    /// Whether the owner of a run is in the roster, as the queries see it.
    fn owner_is_member(&self, s: &State, owner: Option<Inc>) -> bool {
        let name_is_there = |inc| s.process_of(inc).is_some_and(|q| s.db.roster[s.procs[q].name].is_some());
        match owner {
            None => false,
            Some(inc) if self.mistake == Some(Mistake::OwnerByName) => s.is_member(inc) || name_is_there(inc),
            Some(inc) => s.is_member(inc),
        }
    }

    fn is_candidate(&self, s: &State, p: ProcId, run: &Run) -> bool {
        let orphan = match (self.mistake, run.owner) {
            (Some(Mistake::IgnoreLiveOwners), _) => true,
            (Some(Mistake::OrphansWithoutNull), None) => false,
            (Some(Mistake::BurialInMemory), Some(inc)) => s.procs[p].heir_of & 1 << inc != 0,
            (Some(mistake), Some(inc)) if mistake.remembers_burials() => s.db.buried & 1 << inc != 0,
            _ => !self.owner_is_member(s, run.owner),
        };
        !run.finished && (orphan || run.owner == s.procs[p].inc)
    }

    /// The first half of a recovery pass: reads own rows and orphans, and plans.
    pub(crate) fn load(&self, s: &mut State, p: ProcId) {
        let proc = &s.procs[p];
        let Some(own) = proc.inc else { return };
        if proc.phase != Phase::Attached || proc.has_given_up() || proc.draining || proc.pass.is_some() {
            return;
        }
        let runs = s.db.runs.len();
        let running: BTreeMap<_, _> =
            (0..runs).filter_map(|r| Some((run_id(r), i64::from(proc.tasks[r]?.fence).into()))).collect();
        let unclaimed: BTreeSet<_> = (0..runs).filter(|r| proc.unclaimed & 1 << r != 0).map(run_id).collect();
        let last = Sightings { unclaimed, ..Sightings::default() };
        let memory = Memory { room: runs - running.len(), running, last, ..Memory::default() };
        let candidate = |(r, run): (usize, &Run)| Candidate {
            run_id: run_id(r),
            kind: KIND.get_or_init(|| Arc::from("k")).clone(),
            owner: run.owner.map(incarnation),
            fence: i64::from(run.fence).into(),
            unbegun: run.attempt == 0,
            crashes: 0,
            crashed: false,
        };
        let rows: Vec<Candidate> =
            s.db.runs.iter().enumerate().filter(|(_, run)| self.is_candidate(s, p, run)).map(candidate).collect();
        // Nobody is known to share them: a share only delays, and what is taken here at once covers every delay.
        let seen = Seen { rows, ..Seen::default() };
        let mut plan = recover::plan(incarnation(own), &Rules::default(), &memory, &seen, Moment::ZERO);
        assert!(plan.release.is_empty(), "there is always room");
        if self.mistake == Some(Mistake::OwnRowsForgotten) {
            plan.adopt.clear();
        }
        let is_wanted = |r| plan.claim.iter().chain(&plan.adopt).any(|c| c.run_id == run_id(r));
        let wanted: Vec<_> =
            s.db.runs.iter().enumerate().map(|(r, run)| is_wanted(r).then_some((run.owner, run.fence))).collect();
        let check = bits(runs, |id| plan.check.contains(&id));
        let proc = &mut s.procs[p];
        proc.unclaimed = bits(runs, |id| plan.sightings.unclaimed.contains(&id));
        if check != 0 || wanted.iter().any(Option::is_some) {
            proc.pass = Some(Pass { own, wanted, check });
        }
    }

    /// The second half: reads back what has moved on, and claims by compare-and-swap. `heard`: the reply arrives.
    pub(crate) fn claim(&self, s: &mut State, p: ProcId, heard: bool) {
        let Some(pass) = s.procs[p].pass.take() else { return };
        for r in 0..s.db.runs.len() {
            if let Some(task) = s.procs[p].tasks[r].as_mut().filter(|_| pass.check & 1 << r != 0) {
                let run = &s.db.runs[r];
                task.fenced |= run.owner != Some(pass.own) || run.fence != task.fence;
            }
            let Some((expected, fence)) = pass.wanted[r].filter(|_| s.procs[p].tasks[r].is_none()) else { continue };
            if !self.may_claim(s, p, &pass, s.db.runs[r], expected, fence) {
                continue;
            }
            self.judge_claim(s, p, pass.own, r);
            let claim = s.next_claim;
            s.next_claim += 1;
            let attempt = s.db.runs[r].attempt + 1;
            let fence = self.fence(s, p);
            let run = Run { finished: false, owner: Some(pass.own), fence, attempt, claim, written: 0 };
            s.db.runs[r] = run;
            s.procs[p].tasks[r] = heard.then_some(Task::of_claim(pass.own, &run));
        }
    }

    /// The next fence: above all that this process was given, for a failover takes the sequence back. Without one they
    /// are the sequence's.
    fn fence(&self, s: &mut State, p: ProcId) -> u8 {
        s.db.sequence += 1;
        if self.config.faults.failovers == 0 || self.mistake == Some(Mistake::FenceFromSequence) {
            return s.db.sequence;
        }
        let fence = s.db.sequence.max(s.procs[p].highest + 1);
        s.procs[p].highest = fence;
        fence
    }

    fn may_claim(&self, s: &State, p: ProcId, pass: &Pass, run: Run, expected: Option<Inc>, fence: u8) -> bool {
        let row = s.db.roster[s.procs[p].name].filter(|row| row.inc == pass.own && !row.draining);
        let as_expected = run.owner == expected && run.fence == fence;
        let orphan = expected == Some(pass.own) || !self.owner_is_member(s, expected);
        !run.finished
            && (row.is_some() || self.mistake == Some(Mistake::ClaimWithoutRow))
            && (as_expected || self.mistake == Some(Mistake::ClaimUnexpected))
            && (orphan || self.mistake == Some(Mistake::IgnoreLiveOwners))
    }

    fn judge_claim(&self, s: &mut State, p: ProcId, own: Inc, r: usize) {
        let former = s.db.runs[r].owner;
        if !s.is_member(own) {
            Rule::OnlyMembersClaim.broken(s);
        }
        let is_healthy =
            |q: ProcId| s.procs[q].phase == Phase::Attached && !s.procs[q].has_given_up() && self.holds(s, q);
        let former = former.and_then(|inc| s.process_of(inc)).filter(|q| *q != p);
        if former.is_some_and(is_healthy) {
            Rule::HealthyKeepsItsRuns.broken(s);
        }
        let runs_on = |q: ProcId| {
            let proc = &s.procs[q];
            proc.lost == Some(Loss::Silence) && proc.tasks[r].is_some_and(|task| !proc.is_told(&task))
        };
        if former.is_some_and(runs_on) {
            Rule::StopBeforeReplaced.broken(s);
        }
    }

    /// L5: whether the database takes this owner for the run's.
    pub(crate) fn is_owner(&self, run: &Run, inc: Inc, fence: Fence) -> bool {
        let owner = run.owner == Some(inc) || self.mistake == Some(Mistake::FenceByNumber);
        (owner && run.fence == fence) || self.mistake == Some(Mistake::NoFence)
    }

    /// L5: whether the database takes a write of this attempt.
    fn accepts(&self, run: &Run, task: &Task) -> bool {
        !run.finished && self.is_owner(run, task.inc, task.fence)
    }

    /// A fenced write. Refused, its task learns that it is over.
    fn fenced_write(&self, s: &mut State, p: ProcId, r: usize) -> bool {
        let Some(task) = s.procs[p].tasks[r].filter(|task| !s.procs[p].is_writing(task)) else { return false };
        let accepted = self.accepts(&s.db.runs[r], &task);
        if accepted && s.db.runs[r].claim != task.claim {
            Rule::OneWriter.broken(s);
        }
        if !accepted {
            judge_refusal(s, r, task.claim, task.inc);
            s.procs[p].tasks[r] = Some(Task { fenced: true, ..task });
        }
        accepted
    }

    /// A checkpoint, perhaps one that was under way when its task was told to stop.
    pub(crate) fn write(&self, s: &mut State, p: ProcId, r: usize) {
        self.fenced_write(s, p, r);
    }

    /// What a task that ended had sent arrives.
    pub(crate) fn late_write(&self, s: &mut State, p: ProcId) {
        if let Some((r, task)) = s.procs[p].late.take()
            && self.accepts(&s.db.runs[r], &task)
            && s.db.runs[r].claim != task.claim
        {
            Rule::OneWriter.broken(s);
        }
    }

    pub(crate) fn finish(&self, s: &mut State, p: ProcId, r: usize) {
        let proc = &s.procs[p];
        let over = |task: Task| task.fenced || proc.has_given_up() || proc.inc != Some(task.inc);
        if proc.tasks[r].is_none_or(over) {
            return;
        }
        if self.fenced_write(s, p, r) {
            s.db.runs[r].finished = true;
            s.procs[p].tasks[r] = None;
        }
    }

    /// A draining pod gives a run back: nobody owns it. The run's handler may do the same at any time.
    pub(crate) fn yield_run(&self, s: &mut State, p: ProcId, r: usize) {
        let proc = &s.procs[p];
        let is_drained = proc.draining;
        let may = is_drained || s.left.yields > 0;
        if !may || proc.tasks[r].is_none_or(|task| task.fenced || proc.inc != Some(task.inc)) {
            return;
        }
        if self.fenced_write(s, p, r) {
            s.left.yields -= u8::from(!is_drained);
            s.db.runs[r].owner = None;
            s.procs[p].tasks[r] = None;
        }
    }
}
