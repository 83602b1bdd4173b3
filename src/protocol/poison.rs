//! Which runs crash their owners.
//!
//! A run counts its owners in a row that crashed without progress in between. From here, nobody can tell whether the
//! run crashed its owner or only shared its pod. One crash before the limit, the run is a suspect, and a pod runs one
//! suspect at a time. So a suspect that crashes its pod takes no other suspect with it. Only that run reaches the
//! limit; runs that merely shared its pods are spared. At the limit, the run is quarantined by the same statement that
//! would otherwise have claimed it.
//!
//! Other suspects do not wait for a suspect that has run alone for a while without harm ([`runs_alone`]). Otherwise a
//! service with long runs and no checkpoints would stand still after two deaths.
//!
//! # The last pod
//!
//! A run that crashes each pod that claims it needs `max_crashes` pods until it is quarantined. A fleet of no more pods
//! than that would be lost with it. So the last pod that can take such a run does not take it ([`last_pod`]). The rule
//! applies when two owners in a row ([`LAST_POD_BEARS`]) crashed under the run and this pod saw the last of them alive.
//! The pod then leaves the run alone for `ALONE` leases. In that time a supervisor can start the dead pods again, and
//! the usual rule goes on with another pod to spare. If no pod came, the last pod quarantines the run, because this pod
//! is the only one left to lose.
//!
//! Why two crashes and not one: after one crash, every run of the dead pod looks the same. A fleet of two would
//! quarantine all of them at each death. So a fleet of two can lose both its pods to a poison run, unless `max_crashes`
//! is 1.
//!
//! Why this pod must have seen the owner alive: in a service of one pod that its supervisor starts again, that pod is
//! always the last one. It has no other pod to spare, so `max_crashes` alone applies.
//!
//! Why not count the pods and use `n − 1`: by the time of the decision, the dead pods are gone from the roster. A fleet
//! that was made smaller on purpose looks like one that died.
//!
//! Not promised: several poison runs that strike different pods at once may leave no pod. A suspect is also not safe
//! from a poison run on the same pod that is not suspected yet: it dies with that run and is quarantined. A checkpoint
//! now and then keeps a run from ever becoming a suspect.

use std::time::Duration;

use super::ending::Reason;

/// For how many leases a suspect keeps other suspects from starting on the same pod. The last pod of a fleet leaves a
/// run alone for the same time. Longer: suspects wait longer for each other. Shorter: a supervisor may not have started
/// the dead pods again.
const ALONE: u32 = 3;

/// After how many owners in a row crashed under a run the last pod of a fleet no longer takes it. The text above says
/// why one is too few. With three, the default `max_crashes` would apply anyway.
pub const LAST_POD_BEARS: u32 = 2;

/// The reasons that count as a crash of the run ([`Reason::is_crash`]).
pub fn crashes() -> impl Iterator<Item = Reason> {
    Reason::ALL.into_iter().filter(|reason| reason.is_crash())
}

/// How suspicious a run is that may be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// Neither suspect nor poison.
    None,
    /// One more crash makes it poison.
    Suspect,
    /// It must be quarantined.
    Poison,
}

/// Judges a run whose owners crashed `crashes` times in a row. `crashed`: its last owner is one of them. If
/// `max_crashes` is 0, there is no limit.
#[must_use]
pub const fn judge(crashes: u32, crashed: bool, max_crashes: u32) -> Suspicion {
    if max_crashes == 0 || crashes == 0 {
        return Suspicion::None;
    }
    // If the limit was lowered meanwhile, the run is quarantined only after its next crash.
    if crashed && crashes >= max_crashes {
        return Suspicion::Poison;
    }
    if crashes >= suspect_from(max_crashes) { Suspicion::Suspect } else { Suspicion::None }
}

/// The number of crashes from which a run is a suspect.
#[must_use]
pub const fn suspect_from(max_crashes: u32) -> u32 {
    match max_crashes {
        0 | 1 => u32::MAX,
        more => more - 1,
    }
}

/// What the last pod that can take a run does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastPod {
    /// The same as every other pod: it goes by [`judge`].
    AsEver,
    /// It leaves the run alone for this time, because another pod may come.
    Waits(Duration),
    /// It quarantines the run: it claims the run with [`LAST_POD_BEARS`] as the limit.
    GivesUp,
}

/// What the last pod that can take a run does with the run. The pod has been the last one for `last_for`, and saw the
/// run's last owner alive. `crashes` owners in a row crashed under the run. `crashed`: the last owner is one of them.
#[must_use]
pub fn last_pod(crashes: u32, crashed: bool, max_crashes: u32, last_for: Duration, lease: Duration) -> LastPod {
    if !crashed || !(LAST_POD_BEARS..max_crashes).contains(&crashes) {
        return LastPod::AsEver;
    }
    match lease.saturating_mul(ALONE).saturating_sub(last_for) {
        Duration::ZERO => LastPod::GivesUp,
        wait => LastPod::Waits(wait),
    }
}

/// Whether one poison run could crash a whole fleet of `pods` pods if [`last_pod`] did not exist. The service should
/// then lower the limit or add pods. A single pod has no other pod to spare, so the answer is `false`.
#[must_use]
pub fn outnumbers(max_crashes: u32, pods: usize) -> bool {
    pods > 1 && usize::try_from(max_crashes).is_ok_and(|limit| limit >= pods)
}

/// Whether a suspect that has run for `has_run` still keeps other suspects from starting.
#[must_use]
pub fn runs_alone(has_run: Duration, lease: Duration) -> bool {
    has_run < lease.saturating_mul(ALONE)
}

#[cfg(test)]
mod tests {
    use super::Suspicion::{None, Poison, Suspect};
    use super::*;

    #[test]
    fn a_run_is_a_suspect_one_crash_short_of_the_limit_and_poison_at_it() {
        let cases = [
            // (crashes, the last owner crashed, max_crashes)
            ((0, false, 3), None),
            ((1, true, 3), None),
            ((2, true, 3), Suspect),
            ((2, false, 3), Suspect),
            ((3, true, 3), Poison),
            ((9, true, 3), Poison),
            ((1, true, 1), Poison),
            ((1, true, 2), Suspect),
            ((2, true, 2), Poison),
            ((0, false, 1), None),
            // The limit was lowered: a clean end of the owner quarantines nothing.
            ((7, false, 3), Suspect),
            ((7, false, 1), None),
            // No limit.
            ((1000, true, 0), None),
        ];
        for ((crashes, crashed, max), expected) in cases {
            assert_eq!(judge(crashes, crashed, max), expected, "{crashes} crashes, {crashed}, of {max}");
        }
    }

    #[test]
    fn only_a_crash_counts() {
        let all = [
            (Reason::Shutdown, false),
            (Reason::Detached, false),
            (Reason::Evicted, false),
            (Reason::Lost, true),
            (Reason::Stalled, true),
            (Reason::Replaced, true),
        ];
        assert_eq!(all.len(), Reason::ALL.len(), "each reason is here");
        for (reason, counts) in all {
            assert_eq!(reason.is_crash(), counts, "{reason:?}");
        }
    }

    #[test]
    fn the_last_pod_waits_and_then_gives_up_what_took_two_pods_down() {
        let (lease, second) = (Duration::from_secs(10), Duration::from_secs(1));
        let at = |crashes, crashed, max, seconds| last_pod(crashes, crashed, max, second * seconds, lease);
        assert_eq!(at(2, true, 3, 0), LastPod::Waits(second * 30));
        assert_eq!(at(2, true, 3, 29), LastPod::Waits(second));
        assert_eq!(at(2, true, 3, 30), LastPod::GivesUp);
        assert_eq!(at(7, true, 10, 31), LastPod::GivesUp, "however many it may be elsewhere");
        // A single death of a pod: its runs go on.
        assert_eq!(at(1, true, 3, 99), LastPod::AsEver);
        // The last owner stopped cleanly, or there is no limit, or the limit is reached anyway.
        for (crashes, crashed, max) in [(2, false, 3), (2, true, 0), (2, true, 1), (2, true, 2), (3, true, 3)] {
            assert_eq!(at(crashes, crashed, max, 99), LastPod::AsEver, "{crashes}, {crashed}, {max}");
        }
    }

    /// A fleet of `pods` pods that nobody starts again, and a run that crashes each pod that takes it.
    #[test]
    fn a_poison_run_leaves_one_pod_of_any_fleet_of_three_or_more() {
        let (lease, long) = (Duration::from_secs(10), Duration::from_secs(60));
        for max in 2..=12 {
            for pods in 3..=12_u32 {
                let mut crashes = 0;
                let left = (1..=pods).rev().find(|left| {
                    let poison = judge(crashes, true, max) == Poison;
                    let gives_up = *left == 1 && last_pod(crashes, true, max, long, lease) == LastPod::GivesUp;
                    crashes += 1;
                    poison || gives_up
                });
                assert!(left.is_some(), "{pods} pods, max_crashes {max}");
            }
        }
    }

    #[test]
    fn a_limit_that_is_not_below_the_number_of_pods_is_warned_of() {
        for (max, pods, warned) in
            [(3, 1, false), (3, 2, true), (3, 3, true), (3, 4, false), (0, 3, false), (1, 2, false)]
        {
            assert_eq!(outnumbers(max, pods), warned, "{max} of {pods}");
        }
    }

    /// A kill every 20 s for ten minutes, as the rows count it. A run that makes progress between two kills is never
    /// even suspected. A run that makes none is suspected, and quarantined at the third kill.
    #[test]
    fn thirty_kills_quarantine_nothing_that_makes_progress_between_them() {
        let after_kills = |saves: fn(u32) -> bool| {
            let mut crashes = 0;
            (1..=30).find(|kill| {
                if saves(*kill) {
                    crashes = 0;
                }
                crashes += 1;
                judge(crashes, true, 3) == Poison
            })
        };
        assert_eq!(after_kills(|_| true), Option::None);
        assert_eq!(after_kills(|kill| kill % 2 == 0), Option::None, "every second owner saves something");
        assert_eq!(after_kills(|kill| kill % 3 == 0), Some(5), "3, 4 and 5 died, after what the third had saved");
        assert_eq!(after_kills(|_| false), Some(3));
    }
}
