//! Which runs take their owners down with them.
//!
//! A run counts the owners in a row that crashed under it without progress in between: it cannot be told from here
//! whether it brought one down or only shared its fate. One short of the limit it is a suspect, and a pod runs one
//! suspect at a time: the one that crashes its pod then takes no other suspect with it, so that only that one comes to
//! the limit, and those that merely shared its pods are spared. At the limit a run is quarantined where it would have
//! been claimed, by the very statement that would have claimed it.
//!
//! A suspect that has run alone for a while without harm is not waited for any longer ([`runs_alone`]): a service whose
//! runs are long and save no checkpoint would else stand still after two deaths.
//!
//! # The last pod
//!
//! A run that takes down each pod that claims it needs `max_crashes` pods until it is quarantined. A fleet that has no more
//! than that would go down with it. So the last pod that can take such a run does not ([`last_pod`]): where two owners in a
//! row ([`LAST_POD_BEARS`]) crashed under it, the last of them before this pod's eyes, it leaves the run alone for
//! `ALONE` leases. In that time a supervisor has started the dead pods again, and the usual rule goes on with another
//! pod to spare. If nobody came, it quarantines the run: one pod less is all that is left to lose.
//!
//! Why two and not one: after one crash every run of the dead pod looks the same, and a fleet of two would quarantine
//! all of them at each death. So a fleet of two can lose both its pods to a poison run, unless `max_crashes` is 1. Why
//! only what crashed before this pod's eyes: a service of one pod that its supervisor starts again is always the last pod.
//! It has no other pod to spare, so `max_crashes` alone applies to it. Counting the pods, and using `n − 1`, would not
//! do: by the time of the decision the dead are gone from the roster, and a fleet that was made smaller on purpose looks
//! like one that died.
//!
//! Not promised: that a pod is left if several poison runs strike different pods at once. Nor is a suspect safe that
//! shares its pod with a poison run which is not suspected yet: it dies with that run and is quarantined. A
//! checkpoint now and then keeps a run from ever being a suspect.

use std::time::Duration;

use super::ending::Reason;

/// For how many leases a suspect keeps other suspects from beginning on the same pod. The last pod of a fleet leaves
/// a run alone for as long.
const ALONE: u32 = 3;

/// How many owners in a row crash under a run before the last pod of a fleet does not take it any more.
pub const LAST_POD_BEARS: u32 = 2;

/// The reasons that count as a crash of the run ([`Reason::is_crash`]).
pub fn crashes() -> impl Iterator<Item = Reason> {
    Reason::ALL.into_iter().filter(|reason| reason.is_crash())
}

/// What a run is that may be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// Nothing speaks against it.
    None,
    /// One crash more, and it is poison.
    Suspect,
    /// It is to be quarantined.
    Poison,
}

/// What a run is whose owners crashed `crashes` times in a row, the last one included if that `crashed`. 0 as
/// `max_crashes`: there is no limit.
#[must_use]
pub const fn judge(crashes: u32, crashed: bool, max_crashes: u32) -> Suspicion {
    if max_crashes == 0 || crashes == 0 {
        return Suspicion::None;
    }
    // Where the limit was lowered meanwhile, only the next crash brings it to that.
    if crashed && crashes >= max_crashes {
        return Suspicion::Poison;
    }
    if crashes >= suspect_from(max_crashes) { Suspicion::Suspect } else { Suspicion::None }
}

/// From how many crashes on a run is a suspect.
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
    /// As every pod: by [`judge`].
    AsEver,
    /// It leaves the run alone for so long: another pod may come.
    Waits(Duration),
    /// It quarantines the run, by a claim with [`LAST_POD_BEARS`] as the limit.
    GivesUp,
}

/// What the last pod that can take a run does with the run. The pod has been the last one for `last_for`, and saw the
/// run's last owner alive. `crashes` owners in a row crashed under the run; `crashed`: the last owner is one of them.
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

/// Whether one poison run could take down a fleet of `pods`, but for [`last_pod`]: then the service should lower the limit,
/// or have more pods. A single pod has nobody to spare.
#[must_use]
pub fn outnumbers(max_crashes: u32, pods: usize) -> bool {
    pods > 1 && usize::try_from(max_crashes).is_ok_and(|limit| limit >= pods)
}

/// Whether no other suspect may begin beside one that has run for so long.
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
            // The limit was lowered: a clean end of its owner quarantines nothing.
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
        // Any single death of a pod: its runs go on.
        assert_eq!(at(1, true, 3, 99), LastPod::AsEver);
        // Its last owner stopped cleanly, or there is no limit, or the limit is reached anyway.
        for (crashes, crashed, max) in [(2, false, 3), (2, true, 0), (2, true, 1), (2, true, 2), (3, true, 3)] {
            assert_eq!(at(crashes, crashed, max, 99), LastPod::AsEver, "{crashes}, {crashed}, {max}");
        }
    }

    /// A fleet of `pods` in which no pod is started again, and a run that crashes each pod that takes it.
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

    /// A kill every 20 s for ten minutes, as the rows count it: whatever makes progress between two kills is never even
    /// suspected; whatever does not is, and is quarantined at the third.
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
