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
//! Not promised: a suspect that shares its pod with a run that is poison and not suspected yet dies with that one, and
//! is quarantined. A checkpoint now and then keeps a run from ever being a suspect.

use std::time::Duration;

use super::ending::Reason;

/// For how many leases a suspect keeps other suspects from beginning beside it.
const ALONE: u32 = 3;

/// How an owner ended whose end counts as a crash of the run. A clean stop, a detach, an eviction by an operator and an
/// end that nobody knows count nothing.
pub const CRASHES: [Reason; 3] = [Reason::Lost, Reason::Stalled, Reason::Replaced];

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

/// Whether no other suspect may begin beside one that has run for so long.
#[must_use]
pub fn runs_alone(has_run: Duration, lease: Duration) -> bool {
    has_run < lease * ALONE
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
        for (reason, counts) in all {
            assert_eq!(CRASHES.contains(&reason), counts, "{reason:?}");
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
