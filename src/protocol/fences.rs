//! How far the sequence of fences may be raised for one run (L9).
//!
//! On one timeline of the database, a run's fence is never above the sequence. Three things put a fence above it:
//!
//! * a failover that lost the newest numbers;
//! * logical replication, which copies rows but no sequences;
//! * a number that somebody wrote by hand.
//!
//! A new fence must be above the old one, so the sequence is raised first. The raise is limited, because a single row
//! must not use up the sequence and must not keep the server counting.

use crate::id::Fence;

/// The most numbers that a claim itself takes from the sequence to get above a fence: 0.2 s of the server's time
/// (measured). More: a claim is slow. Fewer: small gaps already need a raise under the sequence's lock. `reach.sql` and
/// `above.sql` in `src/store/sql/part`, and `start_run_in_txn.sql`, contain the same number.
pub const STEP: i64 = 100_000;
/// The most by which the sequence is raised at once. A service that claims a million runs a second uses so many numbers
/// in twelve days. A `bigint` has room for eight million such steps. `studio_raise_fence` contains the same number.
pub const JUMP: i64 = 1 << 40;

/// How far a fence is above the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Not above it, or by at most [`STEP`]: the next claim takes the few numbers that are missing.
    Near,
    /// By more than [`STEP`]: the sequence must be raised first.
    Raise,
    /// By more than [`JUMP`]: no pod was ever given such a number, so somebody wrote it by hand. Its run is
    /// quarantined.
    Beyond,
}

/// Compares a run's fence with a sequence whose last number was `last`.
#[must_use]
pub fn reach(fence: Fence, last: Fence) -> Reach {
    let missing = i128::from(fence.get()) - i128::from(last.get().max(0));
    if missing > i128::from(JUMP) {
        Reach::Beyond
    } else if missing > i128::from(STEP) {
        Reach::Raise
    } else {
        Reach::Near
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_near_or_the_sequence_is_raised_for_it_or_it_was_made_by_hand() {
        let cases = [
            (0, 0, Reach::Near),
            (7, 9000, Reach::Near),
            (STEP, 0, Reach::Near),
            (STEP + 1, 0, Reach::Raise),
            (STEP + 1, 1, Reach::Near),
            (JUMP + 5, 5, Reach::Raise),
            (JUMP + 6, 5, Reach::Beyond),
            (1 << 62, 100, Reach::Beyond),
            (i64::MAX, 0, Reach::Beyond),
            (i64::MIN, i64::MAX, Reach::Near),
        ];
        for (fence, last, expected) in cases {
            assert_eq!(reach(fence.into(), last.into()), expected, "{fence} over {last}");
        }
    }
}
