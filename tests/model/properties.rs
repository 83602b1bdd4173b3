//! What must hold in every state, and what must be reached in some.

use stateright::Property;

use crate::model::Podlock;
use crate::state::{Loss, Phase, Proc, State, Task};
use crate::writer::{Stage, Write, is_stale};

/// A rule that holds in every state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Rule {
    OneWriter,
    HolderKeepsItsRow,
    OnlyTheLostAreBuried,
    HealthyKeepsItsRuns,
    OnlyTheLivingBury,
    OnlyMembersClaim,
    RestartBuriesNobody,
    BrokenConnectionIsNoDeath,
    LogFoldsToRoster,
    CleanStopIsNoCrash,
    StopBeforeReplaced,
    EveryRunEnds,
    EveryRunCanEnd,
    ToldWhatIsTrue,
    OnlyTheStaleAreFenced,
    NeighbourIsMade,
    NoWriteGoesBack,
    EndsOnce,
}

impl Rule {
    /// Those that one state or step shows. [`Rule::EveryRunCanEnd`] needs the whole graph.
    pub(crate) const OF_STATES: [Self; 17] = [
        Self::OneWriter,
        Self::ToldWhatIsTrue,
        Self::OnlyTheStaleAreFenced,
        Self::NeighbourIsMade,
        Self::NoWriteGoesBack,
        Self::EndsOnce,
        Self::HolderKeepsItsRow,
        Self::OnlyTheLostAreBuried,
        Self::HealthyKeepsItsRuns,
        Self::OnlyTheLivingBury,
        Self::OnlyMembersClaim,
        Self::RestartBuriesNobody,
        Self::BrokenConnectionIsNoDeath,
        Self::LogFoldsToRoster,
        Self::CleanStopIsNoCrash,
        Self::StopBeforeReplaced,
        Self::EveryRunEnds,
    ];

    /// What it says, as a failure names it.
    pub(crate) fn says(self) -> &'static str {
        match self {
            Self::OneWriter => "L5: only writes of the latest claim of a run are accepted",
            Self::ToldWhatIsTrue => "L5: a caller is told that its write was made only if it was made",
            Self::OnlyTheStaleAreFenced => "L5: an attempt that has its run is not told that it is fenced",
            Self::NeighbourIsMade => "L12: a sound write of a batch is made, whatever the other writes are",
            Self::NoWriteGoesBack => "a checkpoint never replaces a later one of its attempt",
            Self::EndsOnce => "a run ends once",
            Self::HolderKeepsItsRow => "L1, L3: a pod that holds its lock is neither buried nor replaced",
            Self::OnlyTheLostAreBuried => "L1: a living pod is buried only after its session ended",
            Self::HealthyKeepsItsRuns => "L5: a healthy owner is never robbed",
            Self::OnlyTheLivingBury => "L2: a pod that buries holds its own lock and is in the roster",
            Self::OnlyMembersClaim => "a pod that claims is in the roster",
            Self::RestartBuriesNobody => "L2: after a restart of the database, no pod is buried before its deadline",
            Self::BrokenConnectionIsNoDeath => "a pod whose witness lock is held is not buried before its deadline",
            Self::LogFoldsToRoster => "the log folds to the roster",
            Self::CleanStopIsNoCrash => "L4: a clean stop is recorded as one",
            Self::StopBeforeReplaced => "L7: a run of a silent pod is claimed only after that pod told the run to stop",
            Self::EveryRunEnds => "L6: when nothing more can happen and a pod survives, every run is finished",
            Self::EveryRunCanEnd => "L6: from every state, every run can still be finished if no further fault comes",
        }
    }

    /// Notes that a step broke it.
    pub(crate) fn broken(self, s: &mut State) {
        s.broken |= 1 << self as u8;
    }

    fn holds(self, model: &Podlock, s: &State) -> bool {
        match self {
            Self::EveryRunEnds => every_run_ends(model, s),
            _ => s.broken & 1 << self as u8 == 0,
        }
    }

    fn property(self) -> Property<Podlock> {
        macro_rules! checked {
            ($($rule:ident),*) => {
                match self { $(Self::$rule => |m: &Podlock, s: &State| Self::$rule.holds(m, s)),* }
            };
        }
        let condition: fn(&Podlock, &State) -> bool = checked!(
            OneWriter,
            HolderKeepsItsRow,
            OnlyTheLostAreBuried,
            HealthyKeepsItsRuns,
            OnlyTheLivingBury,
            OnlyMembersClaim,
            RestartBuriesNobody,
            BrokenConnectionIsNoDeath,
            LogFoldsToRoster,
            CleanStopIsNoCrash,
            StopBeforeReplaced,
            EveryRunEnds,
            EveryRunCanEnd,
            ToldWhatIsTrue,
            OnlyTheStaleAreFenced,
            NeighbourIsMade,
            NoWriteGoesBack,
            EndsOnce
        );
        Property::always(self.says(), condition)
    }
}

/// What this exploration checks: all rules and its sights, or the one rule that is to catch a mistake.
pub(crate) fn of(model: &Podlock) -> Vec<Property<Podlock>> {
    let rules = Rule::OF_STATES.into_iter().filter(|rule| model.only.is_none_or(|only| only == *rule));
    let sights = model.sights.iter().map(|(name, condition)| Property::sometimes(name, *condition));
    rules.map(Rule::property).chain(sights).collect()
}

/// Whether nothing is left to wait for: every run is finished, or nobody survives to finish it.
pub(crate) fn is_over(s: &State) -> bool {
    s.db.runs.iter().all(|run| run.finished) || !s.procs.iter().any(Proc::lives)
}

/// A state in which no process can do anything is an end, whatever faults might still come.
fn every_run_ends(model: &Podlock, s: &State) -> bool {
    is_over(s) || s.broken != 0 || model.has_step(s)
}

fn tasks(s: &State) -> impl Iterator<Item = Task> {
    s.procs.iter().flat_map(|p| p.tasks).flatten()
}

/// A situation that an exploration must reach, or it shows less than it seems to.
pub(crate) type Sight = (&'static str, fn(&Podlock, &State) -> bool);

pub(crate) const TAKEN_OVER: Sight =
    ("a run was finished by its second owner", |_, s| s.db.runs.iter().any(|run| run.finished && run.attempt >= 2));
pub(crate) const CLAIMED_TWICE: Sight =
    ("a run went through two claims", |_, s| s.db.runs.iter().any(|run| run.attempt >= 3));
pub(crate) const BURIED_AND_BACK: Sight = ("a pod that gave up or was buried is back as a new incarnation", |_, s| {
    s.procs.iter().any(|p| p.phase == Phase::Attached && p.given_up.is_some() && !p.has_given_up())
});
pub(crate) const RETURNED: Sight =
    ("a pod came back as the same incarnation", |_, s| s.db.roster.iter().flatten().any(|row| row.session > 1));
pub(crate) const RESTART_WITH_HOLDERS: Sight = ("a restart freed the locks of two living pods", |_, s| {
    s.procs.iter().filter(|p| p.lives() && p.lost == Some(Loss::Restart)).count() >= 2
});
pub(crate) const ENDED_FIRST: Sight =
    ("a pod without its sessions is in the sight of one that still has them, during a shutdown", |m, s| {
        s.closing && s.procs.iter().enumerate().any(|(p, proc)| m.holds(s, p) && !proc.observer.in_sight().is_empty())
    });
pub(crate) const SETTLED_FOR_SOME: Sight =
    ("a pod may bury its equals, and not yet a pod of a longer lease", |m, s| {
        s.procs.iter().any(|p| p.settled.is_some() && p.settled < m.settles(p.name).max())
    });
pub(crate) const COMMIT_LOST: Sight = ("a failover took a commit back", |_, s| s.lost_commits);
pub(crate) const SAME_FENCE_TWICE: Sight = ("the same fence of one run is in two hands", |_, s| {
    tasks(s).any(|a| tasks(s).any(|b| a.fence == b.fence && a.claim != b.claim && a.inc != b.inc))
});
pub(crate) const REFUSED: Sight = ("a fenced write was refused", |_, s| tasks(s).any(|task| task.fenced));
pub(crate) const HELD: Sight = ("a pod whose lock was free was held", |_, s| s.procs.iter().any(|p| p.due.is_some()));
pub(crate) const MANY_HELD: Sight =
    ("one pod holds two others", |_, s| s.procs.iter().any(|p| p.observer.in_sight().len() >= 2));
pub(crate) const NAME_REUSED: Sight = ("a name has its second process", |_, s| {
    let names = s.db.roster.iter().enumerate();
    names.into_iter().any(|(name, row)| row.is_some_and(|row| row.backend != name))
});
pub(crate) const STOPPED: Sight = ("a pod stopped cleanly", |_, s| s.procs.iter().any(|p| p.phase == Phase::Stopped));
pub(crate) const YIELDED: Sight = ("a run was given back", |_, s| {
    s.db.runs.iter().any(|run| !run.finished && run.owner.is_none() && run.attempt > 0)
});
pub(crate) const OWN_ROW_SEEN: Sight =
    ("a pod saw a row of its own without a task", |_, s| s.procs.iter().any(|p| p.unclaimed != 0));
pub(crate) const LATE: Sight =
    ("a write is on its way whose task has ended", |_, s| s.procs.iter().any(|p| p.late.is_some()));
pub(crate) const STALE_BESIDE_SOUND: Sight =
    ("a batch has a stale write and a sound one", |_, s| in_one_batch(s, |a, b| is_stale(s, a) && !is_stale(s, b)));
pub(crate) const TWO_ATTEMPTS: Sight = ("a batch has writes of two attempts of one run", |_, s| {
    in_one_batch(s, |a, b| a.run == b.run && a.claim != b.claim)
});
pub(crate) const SENT_BEFORE_A_CLAIM: Sight = ("a batch is under way whose run was claimed since", |_, s| {
    s.under_way.iter().flat_map(|batch| &batch.writes).any(|write| s.db.runs[write.run].claim > write.claim)
});
pub(crate) const OVERTAKEN: Sight = ("a batch is under way, and a later write of its attempt was made", |_, s| {
    let is_overtaken = |write: &Write| {
        let run = &s.db.runs[write.run];
        run.claim == write.claim && run.written > write.number
    };
    s.under_way.iter().flat_map(|batch| &batch.writes).any(is_overtaken)
});
pub(crate) const LEFT_OUT: Sight = ("a write is made alone, because its batch did not make it", |_, s| {
    s.procs.iter().flat_map(|p| &p.calls).any(|call| call.stage == Stage::LeftOut)
});
pub(crate) const SENDER_DEAD: Sight = ("a batch is under way whose sender is dead", |_, s| {
    s.under_way.iter().any(|batch| s.procs[batch.sender].phase == Phase::Dead)
});

/// Whether one batch has two such writes.
fn in_one_batch(s: &State, are_such: impl Fn(&Write, &Write) -> bool) -> bool {
    s.under_way.iter().any(|batch| batch.writes.iter().any(|a| batch.writes.iter().any(|b| are_such(a, b))))
}
