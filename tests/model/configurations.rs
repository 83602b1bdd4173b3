//! Where explorations begin: small ones for every test run, larger ones for `make model`.

use crate::model::Config;
use crate::properties::*;
use crate::state::{Faults, ProcId};

/// An exploration of the protocol as it is.
pub(crate) struct Exploration {
    pub(crate) config: Config,
    /// What it must reach.
    pub(crate) sights: &'static [Sight],
}

const NONE: Faults = Faults {
    kills: 0,
    cuts: 0,
    silences: 0,
    restarts: 0,
    shutdowns: 0,
    failovers: 0,
    spawns: 0,
    stops: 0,
    lost_replies: 0,
    late_writes: 0,
    calls: 0,
    yields: 0,
    locks: 0,
    lost_answers: 0,
    drops: 0,
};

/// `pods` settled pods of as many names, with these runs and faults.
pub(crate) fn pods(pods: usize, runs: &[Option<ProcId>], faults: Faults) -> Config {
    Config { names: pods, pods, runs: runs.to_vec(), same_key: false, longer: None, faults }
}

pub(crate) fn kill() -> Exploration {
    let config = pods(2, &[Some(0), None], Faults { kills: 1, spawns: 1, ..NONE });
    Exploration { config, sights: &[TAKEN_OVER, NAME_REUSED] }
}

pub(crate) fn two_kills() -> Exploration {
    let config = pods(3, &[Some(0)], Faults { kills: 2, ..NONE });
    Exploration { config, sights: &[TAKEN_OVER, CLAIMED_TWICE, HELD] }
}

pub(crate) fn cut() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { cuts: 1, ..NONE });
    Exploration { config, sights: &[TAKEN_OVER, BURIED_AND_BACK, RETURNED, REFUSED, HELD] }
}

pub(crate) fn cut_and_kill() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { cuts: 1, kills: 1, ..NONE });
    Exploration { config, sights: &[CLAIMED_TWICE, REFUSED] }
}

pub(crate) fn cut_and_spawn() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { cuts: 1, spawns: 1, ..NONE });
    Exploration { config, sights: &[NAME_REUSED, BURIED_AND_BACK] }
}

pub(crate) fn silence() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { silences: 1, kills: 1, ..NONE });
    Exploration { config, sights: &[TAKEN_OVER, BURIED_AND_BACK, RETURNED] }
}

pub(crate) fn restart() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { restarts: 1, ..NONE });
    Exploration { config, sights: &[RESTART_WITH_HOLDERS, RETURNED, BURIED_AND_BACK] }
}

/// A restart whose shutdown ends the sessions of one pod after another.
pub(crate) fn shutdown() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { shutdowns: 1, ..NONE });
    Exploration { config, sights: &[RETURNED, BURIED_AND_BACK, HELD, ENDED_FIRST] }
}

/// The roster alone: two pods see that a third one has lost its sessions, or one sees that of two others.
pub(crate) fn three_pods_shutdown() -> Exploration {
    let config = pods(3, &[], Faults { shutdowns: 1, ..NONE });
    Exploration { config, sights: &[RETURNED, BURIED_AND_BACK, MANY_HELD, ENDED_FIRST] }
}

/// A pod dies while the server shuts down.
pub(crate) fn shutdown_and_kill() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { shutdowns: 1, kills: 1, ..NONE });
    Exploration { config, sights: &[RETURNED, TAKEN_OVER, ENDED_FIRST] }
}

/// A fleet whose lease is being changed: the owner of the run has the longer one.
pub(crate) fn unequal_restart() -> Exploration {
    let config = Config { longer: Some(0), ..restart().config };
    Exploration { config, sights: &[RESTART_WITH_HOLDERS, RETURNED, BURIED_AND_BACK, TAKEN_OVER, SETTLED_FOR_SOME] }
}

pub(crate) fn unequal_cut() -> Exploration {
    let config = Config { longer: Some(0), ..cut().config };
    Exploration { config, sights: &[TAKEN_OVER, BURIED_AND_BACK, RETURNED, REFUSED, HELD] }
}

pub(crate) fn failover() -> Exploration {
    let config = pods(1, &[None], Faults { failovers: 1, kills: 1, spawns: 1, ..NONE });
    Exploration { config, sights: &[COMMIT_LOST, SAME_FENCE_TWICE, REFUSED, NAME_REUSED] }
}

pub(crate) fn failover_of_an_end() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { failovers: 1, ..NONE });
    Exploration { config, sights: &[COMMIT_LOST, OWN_ROW_SEEN, TAKEN_OVER] }
}

pub(crate) fn stop() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { stops: 1, kills: 1, spawns: 1, ..NONE });
    Exploration { config, sights: &[STOPPED, YIELDED, TAKEN_OVER] }
}

pub(crate) fn lost_reply() -> Exploration {
    let config = pods(2, &[None], Faults { lost_replies: 1, cuts: 1, ..NONE });
    Exploration { config, sights: &[OWN_ROW_SEEN, CLAIMED_TWICE] }
}

pub(crate) fn late_write() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { cuts: 1, late_writes: 1, ..NONE });
    Exploration { config, sights: &[TAKEN_OVER, REFUSED, LATE] }
}

/// The writes of two runs in one batch. A handler gives its run back, and the pod claims it again.
pub(crate) fn batch() -> Exploration {
    let config = pods(1, &[Some(0), Some(0)], Faults { calls: 2, yields: 1, drops: 1, locks: 1, ..NONE });
    Exploration { config, sights: &[STALE_BESIDE_SOUND, SENT_BEFORE_A_CLAIM, LEFT_OUT, REFUSED] }
}

/// A batch whose reply does not come arrives among the later writes of its attempt.
pub(crate) fn batch_in_doubt() -> Exploration {
    let config = pods(1, &[Some(0)], Faults { calls: 3, yields: 1, drops: 1, lost_answers: 1, ..NONE });
    Exploration { config, sights: &[OVERTAKEN, SENT_BEFORE_A_CLAIM] }
}

/// Two attempts of one run on one pod, in one batch: the pod gave the first one up.
pub(crate) fn batch_of_two_attempts() -> Exploration {
    let config = pods(1, &[Some(0)], Faults { calls: 2, cuts: 1, locks: 1, lost_answers: 1, ..NONE });
    Exploration { config, sights: &[TWO_ATTEMPTS, STALE_BESIDE_SOUND, SENT_BEFORE_A_CLAIM, LEFT_OUT, REFUSED] }
}

/// A batch arrives before or after the burial of its pod, and the claim by the other.
pub(crate) fn batch_and_kill() -> Exploration {
    let config = pods(2, &[Some(0), Some(0)], Faults { calls: 2, kills: 1, lost_answers: 1, ..NONE });
    Exploration { config, sights: &[SENDER_DEAD, SENT_BEFORE_A_CLAIM, OVERTAKEN, TAKEN_OVER] }
}

pub(crate) fn batch_and_cut() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { calls: 1, cuts: 1, ..NONE });
    Exploration { config, sights: &[SENT_BEFORE_A_CLAIM, TAKEN_OVER, REFUSED] }
}

pub(crate) fn batches_of_two_runs() -> Exploration {
    let faults = Faults { calls: 4, yields: 1, drops: 1, locks: 1, lost_answers: 1, ..NONE };
    let sights = &[STALE_BESIDE_SOUND, SENT_BEFORE_A_CLAIM, OVERTAKEN, LEFT_OUT, REFUSED];
    Exploration { config: pods(1, &[Some(0), Some(0)], faults), sights }
}

/// A pod loses two runs to the other one, or to itself, while its batches are under way.
pub(crate) fn batches_and_cut() -> Exploration {
    let config = pods(2, &[Some(0), Some(0)], Faults { calls: 2, cuts: 1, ..NONE });
    Exploration { config, sights: &[STALE_BESIDE_SOUND, TWO_ATTEMPTS, SENT_BEFORE_A_CLAIM, TAKEN_OVER, REFUSED] }
}

pub(crate) fn batches_in_doubt_and_cut() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { calls: 2, cuts: 1, drops: 1, locks: 1, lost_answers: 1, ..NONE });
    Exploration { config, sights: &[TWO_ATTEMPTS, SENT_BEFORE_A_CLAIM, OVERTAKEN, LEFT_OUT, TAKEN_OVER] }
}

pub(crate) fn batches_and_kill() -> Exploration {
    let faults = Faults { calls: 3, kills: 1, spawns: 1, locks: 1, lost_answers: 1, ..NONE };
    let config = pods(2, &[Some(0), Some(0)], faults);
    Exploration { config, sights: &[SENDER_DEAD, SENT_BEFORE_A_CLAIM, OVERTAKEN, LEFT_OUT, TAKEN_OVER] }
}

pub(crate) fn batches_and_stop() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { calls: 2, stops: 1, cuts: 1, lost_answers: 1, ..NONE });
    Exploration { config, sights: &[SENT_BEFORE_A_CLAIM, OVERTAKEN, STOPPED, YIELDED, TAKEN_OVER] }
}

pub(crate) fn batches_and_failover() -> Exploration {
    let config = pods(1, &[Some(0)], Faults { calls: 2, failovers: 1, drops: 1, lost_answers: 1, ..NONE });
    Exploration { config, sights: &[COMMIT_LOST, SENT_BEFORE_A_CLAIM, TWO_ATTEMPTS] }
}

pub(crate) fn same_key() -> Exploration {
    let config =
        Config { names: 3, pods: 1, same_key: true, ..pods(1, &[Some(0)], Faults { kills: 1, spawns: 2, ..NONE }) };
    Exploration { config, sights: &[TAKEN_OVER] }
}

pub(crate) fn failover_of_a_claim() -> Exploration {
    let config = pods(2, &[None], Faults { failovers: 1, ..NONE });
    Exploration { config, sights: &[COMMIT_LOST, SAME_FENCE_TWICE, REFUSED, OWN_ROW_SEEN] }
}

/// The roster alone: who is held, and why.
pub(crate) fn three_pods_two_cuts() -> Exploration {
    let config = pods(3, &[], Faults { cuts: 2, ..NONE });
    Exploration { config, sights: &[HELD, MANY_HELD, BURIED_AND_BACK, RETURNED] }
}

pub(crate) fn three_pods_cut_and_kill() -> Exploration {
    let config = pods(3, &[Some(0)], Faults { cuts: 1, kills: 1, ..NONE });
    Exploration { config, sights: &[TAKEN_OVER, HELD, CLAIMED_TWICE] }
}

/// The roster alone, of three pods that all lose their sessions.
pub(crate) fn three_pods_restart() -> Exploration {
    let config = pods(3, &[], Faults { restarts: 1, ..NONE });
    Exploration { config, sights: &[RESTART_WITH_HOLDERS, BURIED_AND_BACK, RETURNED] }
}

/// The same, where one of them has a longer lease than the two others.
pub(crate) fn unequal_three_pods_restart() -> Exploration {
    let config = Config { longer: Some(0), ..three_pods_restart().config };
    Exploration { config, sights: &[RESTART_WITH_HOLDERS, BURIED_AND_BACK, RETURNED, MANY_HELD, SETTLED_FOR_SOME] }
}

pub(crate) fn two_cuts_and_spawn() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { cuts: 2, spawns: 1, ..NONE });
    Exploration { config, sights: &[TAKEN_OVER, CLAIMED_TWICE, NAME_REUSED] }
}

pub(crate) fn restart_and_cut() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { cuts: 1, restarts: 1, ..NONE });
    Exploration { config, sights: &[TAKEN_OVER, CLAIMED_TWICE, RESTART_WITH_HOLDERS] }
}

pub(crate) fn restart_and_kill() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { kills: 1, restarts: 1, spawns: 1, ..NONE });
    Exploration { config, sights: &[TAKEN_OVER, CLAIMED_TWICE, RESTART_WITH_HOLDERS] }
}

pub(crate) fn failover_and_kill() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { kills: 1, failovers: 1, ..NONE });
    Exploration { config, sights: &[COMMIT_LOST, TAKEN_OVER] }
}

pub(crate) fn failover_and_cut() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { cuts: 1, failovers: 1, ..NONE });
    Exploration { config, sights: &[COMMIT_LOST, SAME_FENCE_TWICE] }
}

pub(crate) fn two_runs() -> Exploration {
    let config = pods(2, &[Some(0), Some(1)], Faults { cuts: 1, kills: 1, spawns: 1, ..NONE });
    Exploration { config, sights: &[TAKEN_OVER, CLAIMED_TWICE, REFUSED] }
}

pub(crate) fn stop_and_cut() -> Exploration {
    let config = pods(3, &[Some(0)], Faults { cuts: 1, stops: 1, lost_replies: 1, ..NONE });
    Exploration { config, sights: &[STOPPED, YIELDED, CLAIMED_TWICE] }
}

pub(crate) fn failover_and_stop() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { failovers: 1, stops: 1, ..NONE });
    Exploration { config, sights: &[COMMIT_LOST, STOPPED, YIELDED] }
}

pub(crate) fn failover_and_lost_reply() -> Exploration {
    let config = pods(1, &[None], Faults { failovers: 1, lost_replies: 1, cuts: 1, spawns: 1, ..NONE });
    Exploration { config, sights: &[COMMIT_LOST, OWN_ROW_SEEN, SAME_FENCE_TWICE] }
}

pub(crate) fn two_failovers() -> Exploration {
    let config = pods(1, &[None], Faults { failovers: 2, spawns: 1, ..NONE });
    Exploration { config, sights: &[COMMIT_LOST, SAME_FENCE_TWICE, NAME_REUSED] }
}

pub(crate) fn silence_and_cut() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { silences: 1, cuts: 1, spawns: 1, ..NONE });
    Exploration { config, sights: &[CLAIMED_TWICE, BURIED_AND_BACK, RETURNED] }
}

pub(crate) fn stop_kill_and_cut() -> Exploration {
    let config = pods(2, &[Some(0)], Faults { stops: 1, kills: 1, cuts: 1, spawns: 1, ..NONE });
    Exploration { config, sights: &[CLAIMED_TWICE, STOPPED, YIELDED, NAME_REUSED] }
}
