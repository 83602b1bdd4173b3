//! What a state of the model is: the database, its locks, the processes, and how many faults are left.

use podlock::protocol::verdict::LossObserver;

use crate::writer::{Call, Statement};

/// A pod's name; it may be used again.
pub(crate) type Name = usize;
/// One process. The second process of a name has another number.
pub(crate) type ProcId = usize;
/// An incarnation, numbered in the order of registration.
pub(crate) type Inc = u8;
/// A fence, as the database's sequence hands it out.
pub(crate) type Fence = u8;
/// The true order of claims. The database knows fences only, and hands one out twice after a failover; the properties
/// go by this number.
pub(crate) type Claim = u8;
/// The most runs that a configuration has.
pub(crate) const RUNS: usize = 2;

/// A row of the roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    pub(crate) inc: Inc,
    /// How many liveness sessions the incarnation has had.
    pub(crate) session: u8,
    pub(crate) draining: bool,
    /// Its clean stop is complete.
    pub(crate) stopped: bool,
    /// Whose session it names: `liveness_pid` and `liveness_started`.
    pub(crate) backend: ProcId,
}

/// A row of `studio_runs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Run {
    pub(crate) finished: bool,
    pub(crate) owner: Option<Inc>,
    pub(crate) fence: Fence,
    pub(crate) attempt: u8,
    /// The claim that this timeline of the database knows as the latest.
    pub(crate) claim: Claim,
    /// The number of the checkpoint that is stored, among the writes of its attempt.
    pub(crate) written: u8,
}

/// What is committed. A failover brings an earlier value of it back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Db {
    /// By name.
    pub(crate) roster: Vec<Option<Row>>,
    pub(crate) runs: Vec<Run>,
    /// The fence sequence.
    pub(crate) sequence: Fence,
    /// Which incarnations were buried, as bits. Kept for the mistakes alone that make recovery depend on a burial.
    pub(crate) buried: u32,
}

/// Where a process stands, as it sees it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// It boots: takes its locks, then registers.
    Booting,
    /// It believes that it holds its lock. Its session may have ended without its knowledge.
    Attached,
    /// It knows that its session ended, and tries to return.
    Detached,
    /// It ended cleanly.
    Stopped,
    /// It was killed, or refused to boot.
    Dead,
}

/// What ended a process's session, until it is attached again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Loss {
    /// Its liveness connection broke, alone or with its control connection.
    Cut,
    /// The server ended it because it was silent for a lease.
    Silence,
    /// The database restarted or failed over, which ends the sessions of every process.
    Restart,
}

/// An attempt at a run: a task in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Task {
    pub(crate) inc: Inc,
    pub(crate) fence: Fence,
    pub(crate) claim: Claim,
    /// A write of it was refused, or a pass found that the run is no longer its own.
    pub(crate) fenced: bool,
    /// The number of its last write, where writes are grouped.
    pub(crate) number: u8,
    /// A call that ends the run was dropped. Its end may be stored, now or later.
    pub(crate) perhaps_ended: bool,
}

impl Task {
    /// A new attempt, under the claim that the row has now.
    pub(crate) fn of_claim(inc: Inc, run: &Run) -> Self {
        Self { inc, fence: run.fence, claim: run.claim, fenced: false, number: 0, perhaps_ended: false }
    }
}

/// What a recovery pass has read and planned, before it claims.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pass {
    pub(crate) own: Inc,
    /// For each run the owner and the fence that the claim will expect.
    pub(crate) wanted: Vec<Option<(Option<Inc>, Fence)>>,
    /// Tasks in memory whose rows look as if they had moved on, as bits.
    pub(crate) check: u8,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Proc {
    pub(crate) name: Name,
    pub(crate) phase: Phase,
    pub(crate) inc: Option<Inc>,
    /// The incarnation that it gave up last.
    pub(crate) given_up: Option<Inc>,
    /// L2: for how long it has held its lock without a break: the longest of the times after which it may bury some
    /// peer ([`Podlock::settles`](crate::model::Podlock)); `None` before the first of them.
    pub(crate) settled: Option<u16>,
    pub(crate) draining: bool,
    pub(crate) lost: Option<Loss>,
    /// Its liveness session gets no answer, and the server still has it.
    pub(crate) silent: bool,
    pub(crate) tasks: [Option<Task>; RUNS],
    /// The calls of its attempts that wait for an answer, in order: also of attempts that ended.
    pub(crate) calls: Vec<Call>,
    /// A statement of a task that has ended, still on its way to the server.
    pub(crate) late: Option<(usize, Task)>,
    pub(crate) pass: Option<Pass>,
    /// The highest fence that it was given, where a failover may come.
    pub(crate) highest: Fence,
    /// Own rows that the last pass saw without a task, as bits.
    pub(crate) unclaimed: u8,
    pub(crate) observer: LossObserver,
    /// Its own clock, from the first sighting that it has.
    pub(crate) clock: u16,
    /// When it is due to probe a peer again that it holds.
    pub(crate) due: Option<u16>,
    /// For the mistake of probing and deleting in two transactions: whom it found dead.
    pub(crate) doomed: Option<Name>,
    /// For the mistake of keeping a burial in memory: whom it buried, as bits.
    pub(crate) heir_of: u32,
}

impl Proc {
    pub(crate) fn booting(name: Name) -> Self {
        Self {
            name,
            phase: Phase::Booting,
            inc: None,
            given_up: None,
            settled: None,
            draining: false,
            lost: None,
            silent: false,
            tasks: [None; RUNS],
            calls: Vec::new(),
            late: None,
            pass: None,
            highest: 0,
            unclaimed: 0,
            observer: LossObserver::default(),
            clock: 0,
            due: None,
            doomed: None,
            heir_of: 0,
        }
    }

    pub(crate) fn lives(&self) -> bool {
        !matches!(self.phase, Phase::Stopped | Phase::Dead)
    }

    /// Whether it gave its present incarnation up.
    pub(crate) fn has_given_up(&self) -> bool {
        self.inc.is_some() && self.given_up == self.inc
    }

    /// Whether a task of it was told to stop.
    pub(crate) fn is_told(&self, task: &Task) -> bool {
        task.fenced || self.draining || self.has_given_up() || self.inc != Some(task.inc)
    }

    /// Ends: nothing of its memory is left.
    pub(crate) fn end(&mut self, phase: Phase) {
        *self = Self { phase, inc: self.inc, ..Self::booting(self.name) };
    }
}

/// How many faults of each kind may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    /// Processes that are killed.
    pub(crate) kills: u8,
    /// Sessions that end while their process goes on.
    pub(crate) cuts: u8,
    /// Pods whose liveness session falls silent.
    pub(crate) silences: u8,
    /// Restarts of the database, which end all sessions at one moment.
    pub(crate) restarts: u8,
    /// Restarts of the database, which end the sessions of one process after another.
    pub(crate) shutdowns: u8,
    /// Failovers to a standby that may lag.
    pub(crate) failovers: u8,
    /// Processes that are started, under a name that may be in use.
    pub(crate) spawns: u8,
    /// Clean stops.
    pub(crate) stops: u8,
    /// Claims whose reply is lost after the commit.
    pub(crate) lost_replies: u8,
    /// Writes that reach the database after their task has ended.
    pub(crate) late_writes: u8,
    /// Writes that an attempt makes through the writer of its pod, which groups them.
    pub(crate) calls: u8,
    /// Runs that are given back by a pod that does not drain.
    pub(crate) yields: u8,
    /// Grouped statements that meet locked rows.
    pub(crate) locks: u8,
    /// Grouped statements whose reply does not come.
    pub(crate) lost_answers: u8,
    /// Calls that are dropped before their answer.
    pub(crate) drops: u8,
}

/// A state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) db: Db,
    /// What the standby has, once it lags.
    pub(crate) standby: Option<Db>,
    /// Who holds each liveness key.
    pub(crate) liveness: Vec<Option<ProcId>>,
    /// Who holds each witness key.
    pub(crate) witness: Vec<Option<ProcId>>,
    pub(crate) procs: Vec<Proc>,
    /// Grouped statements on their way to the server, in one order. The server may execute them in any.
    pub(crate) under_way: Vec<Statement>,
    pub(crate) next_inc: Inc,
    pub(crate) next_claim: Claim,
    pub(crate) left: Faults,
    /// The database is ending its sessions, and accepts no connection.
    pub(crate) closing: bool,
    /// A failover took commits back.
    pub(crate) lost_commits: bool,
    /// Which rules were broken, as bits of [`crate::properties::Rule`].
    pub(crate) broken: u32,
}

impl State {
    /// The process whose present incarnation this is.
    pub(crate) fn process_of(&self, inc: Inc) -> Option<ProcId> {
        self.procs.iter().position(|p| p.inc == Some(inc))
    }

    /// Whether an incarnation is in the roster.
    pub(crate) fn is_member(&self, inc: Inc) -> bool {
        self.db.roster.iter().flatten().any(|row| row.inc == inc)
    }
}
