//! The known mistakes: each a switch, with the rule that must catch it and a small configuration in which it shows.

use crate::model::Config;
use crate::properties::Rule;
use crate::state::Faults;

/// Two runs of one owner.
const TWO: &[Option<usize>] = &[Some(0), Some(0)];

/// A way to get the protocol wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    RowBeforeLock,
    RowThroughPool,
    DeleteByName,
    NoSettle,
    BuriesBehindAClosedDoor,
    ProofByTryLock,
    BuryWithoutRow,
    NoGrace,
    OwnSettle,
    OwnGrace,
    LeaseBeforeDeadline,
    LetsGoUnanswered,
    BurialInMemory,
    BurialUnlogged,
    StopDeletesRow,
    StopUnmarked,
    StopCompleteTooEarly,
    NobodyAdopts,
    SharedKey,
    OwnerByName,
    ClaimUnexpected,
    IgnoreLiveOwners,
    ClaimWithoutRow,
    OrphansWithoutNull,
    OwnRowsForgotten,
    NoFence,
    FenceByNumber,
    FenceFromSequence,
    AnswersByRun,
    NoFenceInOneRow,
    AllOrNothing,
    RepeatWithoutNumber,
    LeftOutIsFenced,
    EndsAgain,
    EndOfAnotherCall,
}

/// A mistake's entry in the table.
pub(crate) struct Case {
    pub(crate) caught_by: Rule,
    pub(crate) config: Config,
}

impl Mistake {
    /// What it is, as the page on the model names it.
    pub(crate) fn says(self) -> &'static str {
        match self {
            Self::RowBeforeLock => "a pod writes its row before it takes its lock",
            Self::RowThroughPool => "a pod writes its row through the pool, not on its lock's session",
            Self::DeleteByName => "a burial probes in one transaction, and deletes by name in another",
            Self::NoSettle => "a pod may bury as soon as it is back from a restart",
            Self::BuriesBehindAClosedDoor => {
                "a pod buries while the server ends its sessions and accepts no connection"
            }
            Self::ProofByTryLock => "a burier proves its own lock by a try-lock that fails",
            Self::BuryWithoutRow => "a pod that lost its row goes on and buries",
            Self::NoGrace => "a pod has no grace to come back if only its liveness connection broke",
            Self::OwnSettle => "a pod buries a pod of a longer lease as soon as it may bury its equals",
            Self::OwnGrace => "a pod waits for a pod of a longer lease only as long as its own settings say",
            Self::LeaseBeforeDeadline => "the lease ends before the pod's deadline",
            Self::LetsGoUnanswered => "a pod closes both of its unanswered sessions before its deadline",
            Self::BurialInMemory => "only the memory of the burier knows which runs a burial orphaned",
            Self::BurialUnlogged => "a burial appends no event",
            Self::StopDeletesRow => "a clean stop deletes its own row, and recovery waits for burials",
            Self::StopUnmarked => "a clean stop does not mark its row",
            Self::StopCompleteTooEarly => "a clean stop is recorded as complete when it begins",
            Self::NobodyAdopts => "a restart overwrites the row of its name, and recovery waits for burials",
            Self::SharedKey => "two names with the same lock key may both register",
            Self::OwnerByName => "the owner of a run is found by name",
            Self::ClaimUnexpected => "a claim does not name the owner that it expects",
            Self::IgnoreLiveOwners => "a sweep ignores live owners",
            Self::ClaimWithoutRow => "a pod that lost its row claims",
            Self::OrphansWithoutNull => "a run without an owner does not count as an orphan",
            Self::OwnRowsForgotten => "a pod does not adopt its own runs that have no task",
            Self::NoFence => "writes check no fence",
            Self::FenceByNumber => "writes check only the number of the fence, not the incarnation",
            Self::FenceFromSequence => {
                "a claim takes the next number of the sequence, even if it is not above former fences"
            }
            Self::AnswersByRun => "the answers of a batch are joined by run, not by the place of the write",
            Self::NoFenceInOneRow => "a batch asks for the fence in its first row alone",
            Self::AllOrNothing => "a batch is made as a whole or not at all, as its first row's condition says",
            Self::RepeatWithoutNumber => "checkpoints have no number, and are repeated after a lost reply",
            Self::LeftOutIsFenced => "a write that a batch did not make counts as fenced",
            Self::EndsAgain => "an end does not ask whether the run has ended",
            Self::EndOfAnotherCall => "the end of a call that was dropped counts as that of a later call",
        }
    }

    /// Whether recovery waits for a burial instead of reading the state (L6).
    pub(crate) fn remembers_burials(self) -> bool {
        matches!(self, Self::StopDeletesRow | Self::NobodyAdopts)
    }

    pub(crate) fn case(self) -> Case {
        let none = Faults::default();
        let of = |names, pods, runs: &[Option<usize>], faults| Config {
            names,
            pods,
            runs: runs.to_vec(),
            same_key: false,
            longer: None,
            faults,
        };
        let (caught_by, config) = match self {
            Self::RowBeforeLock => (Rule::OnlyTheLostAreBuried, of(2, 1, &[None], Faults { spawns: 1, ..none })),
            Self::RowThroughPool => (Rule::HolderKeepsItsRow, of(2, 1, &[None], Faults { spawns: 2, cuts: 1, ..none })),
            Self::DeleteByName => {
                (Rule::HolderKeepsItsRow, of(2, 2, &[Some(1)], Faults { kills: 1, spawns: 1, ..none }))
            }
            Self::NoSettle => (Rule::RestartBuriesNobody, of(2, 2, &[Some(0)], Faults { restarts: 1, ..none })),
            Self::BuriesBehindAClosedDoor => {
                (Rule::RestartBuriesNobody, of(2, 2, &[Some(0)], Faults { shutdowns: 1, ..none }))
            }
            Self::ProofByTryLock => {
                (Rule::OnlyTheLivingBury, of(2, 2, &[Some(1)], Faults { cuts: 1, kills: 1, spawns: 1, ..none }))
            }
            Self::BuryWithoutRow => {
                (Rule::OnlyTheLivingBury, of(2, 2, &[Some(1)], Faults { cuts: 1, kills: 1, ..none }))
            }
            Self::NoGrace => (Rule::BrokenConnectionIsNoDeath, of(2, 2, &[Some(1)], Faults { cuts: 1, ..none })),
            Self::OwnSettle => {
                let config = of(2, 2, &[Some(0)], Faults { restarts: 1, ..none });
                (Rule::RestartBuriesNobody, Config { longer: Some(0), ..config })
            }
            Self::OwnGrace => {
                let config = of(2, 2, &[Some(0)], Faults { cuts: 1, ..none });
                (Rule::BrokenConnectionIsNoDeath, Config { longer: Some(0), ..config })
            }
            Self::LeaseBeforeDeadline | Self::LetsGoUnanswered => {
                (Rule::StopBeforeReplaced, of(2, 2, &[Some(1)], Faults { silences: 1, ..none }))
            }
            Self::BurialInMemory => (Rule::EveryRunEnds, of(3, 3, &[Some(2)], Faults { kills: 2, ..none })),
            Self::BurialUnlogged => (Rule::LogFoldsToRoster, of(2, 2, &[Some(1)], Faults { kills: 1, ..none })),
            Self::StopDeletesRow => (Rule::EveryRunEnds, of(2, 2, &[Some(1)], Faults { stops: 1, ..none })),
            Self::StopCompleteTooEarly => {
                (Rule::RestartBuriesNobody, of(2, 2, &[Some(1)], Faults { stops: 1, restarts: 1, ..none }))
            }
            Self::StopUnmarked => (Rule::CleanStopIsNoCrash, of(2, 2, &[Some(1)], Faults { stops: 1, ..none })),
            Self::NobodyAdopts => (Rule::EveryRunEnds, of(2, 2, &[Some(1)], Faults { kills: 1, spawns: 1, ..none })),
            Self::SharedKey => {
                let config = of(3, 1, &[Some(0)], Faults { kills: 1, spawns: 1, ..none });
                (Rule::EveryRunEnds, Config { same_key: true, ..config })
            }
            Self::OwnerByName => (Rule::EveryRunEnds, of(2, 2, &[Some(1)], Faults { kills: 1, spawns: 1, ..none })),
            Self::ClaimUnexpected => (Rule::HealthyKeepsItsRuns, of(2, 2, &[None], none)),
            Self::IgnoreLiveOwners => (Rule::HealthyKeepsItsRuns, of(2, 2, &[Some(0)], none)),
            Self::ClaimWithoutRow => (Rule::OnlyMembersClaim, of(2, 2, &[None], Faults { cuts: 1, ..none })),
            Self::OrphansWithoutNull => (Rule::EveryRunEnds, of(1, 1, &[None], none)),
            Self::OwnRowsForgotten => (Rule::EveryRunCanEnd, of(1, 1, &[None], Faults { lost_replies: 1, ..none })),
            Self::NoFence => (Rule::OneWriter, of(2, 2, &[Some(0)], Faults { cuts: 1, ..none })),
            Self::FenceByNumber => (Rule::OneWriter, of(2, 2, &[None], Faults { failovers: 1, ..none })),
            Self::FenceFromSequence => {
                (Rule::OneWriter, of(2, 2, &[None], Faults { failovers: 1, late_writes: 1, ..none }))
            }
            Self::AnswersByRun => (Rule::ToldWhatIsTrue, of(1, 1, &[Some(0)], Faults { calls: 2, cuts: 1, ..none })),
            Self::NoFenceInOneRow => (Rule::OneWriter, of(1, 1, TWO, Faults { calls: 2, drops: 1, yields: 1, ..none })),
            Self::AllOrNothing => {
                (Rule::NeighbourIsMade, of(1, 1, TWO, Faults { calls: 2, drops: 1, yields: 1, ..none }))
            }
            Self::RepeatWithoutNumber => {
                (Rule::NoWriteGoesBack, of(1, 1, &[Some(0)], Faults { calls: 2, lost_answers: 1, ..none }))
            }
            Self::LeftOutIsFenced => {
                (Rule::OnlyTheStaleAreFenced, of(1, 1, &[Some(0)], Faults { calls: 1, locks: 1, ..none }))
            }
            Self::EndsAgain => (Rule::EndsOnce, of(1, 1, &[Some(0)], Faults { calls: 1, lost_answers: 1, ..none })),
            Self::EndOfAnotherCall => {
                (Rule::ToldWhatIsTrue, of(1, 1, &[Some(0)], Faults { calls: 2, drops: 1, ..none }))
            }
        };
        Case { caught_by, config }
    }
}
