//! When samples are written, and how many at once.

use std::time::Duration;

/// The shortest time between two writes. With a shorter one, each sample of a busy pod would be a write of its own.
pub const SHORTEST: Duration = Duration::from_secs(1);
/// The longest time between two writes. With a longer one, people wait for samples, and more are lost when a pod dies.
pub const LONGEST: Duration = Duration::from_secs(30);
/// The most samples of one write. More make one statement long; fewer cost round trips after an outage.
pub const MOST: usize = 500;
/// A write takes at most this share of a pod's time: a hundredth.
const SHARE: u32 = 100;

/// What the last write showed.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// How long it took, the wait for a connection included.
    pub took: Duration,
    /// How full the queue was afterwards: 0 to 1.
    pub filled: f64,
}

/// How long to wait before the next write.
///
/// * A hundred times as long as the last write took, so that a slow server, or a busy pool, gets fewer writes. A write of
///   10 ms or less comes each second, one of 300 ms or more each 30 s.
/// * From one write to the next, the time at most doubles or halves. One slow write among fast ones changes little.
/// * A queue that is half full halves the time whatever the write took, because a dropped sample is worse than a write.
#[must_use]
pub fn next_interval(last: Duration, seen: Seen) -> Duration {
    let last = last.clamp(SHORTEST, LONGEST);
    let wanted = if seen.filled >= 0.5 { Duration::ZERO } else { seen.took.saturating_mul(SHARE) };
    wanted.clamp(last / 2, last * 2).clamp(SHORTEST, LONGEST)
}

/// How many samples the next write has at most, after one that had `last`. `too_much`: the server refused what it
/// contained, or it took too long. Then half as many. If it was one sample that cannot be stored, a write of that one alone
/// shows which.
#[must_use]
pub fn next_most(last: usize, too_much: bool) -> usize {
    if too_much { (last / 2).max(1) } else { last.saturating_mul(2).clamp(1, MOST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_grows_while_the_server_is_slow_and_shrinks_when_the_queue_fills() {
        let ms = Duration::from_millis;
        let cases = [
            // last, took, filled, next
            (1_000, 0, 0.0, 1_000),
            (1_000, 10, 0.0, 1_000),
            (1_000, 15, 0.0, 1_500),
            (1_000, 5_000, 0.0, 2_000),
            (8_000, 5_000, 0.0, 16_000),
            (16_000, 5_000, 0.0, 30_000),
            (30_000, 5_000, 0.0, 30_000),
            (30_000, 300, 0.0, 30_000),
            (30_000, 200, 0.0, 20_000),
            (30_000, 1, 0.0, 15_000),
            (1_500, 1, 0.0, 1_000),
            (30_000, 5_000, 0.49, 30_000),
            (30_000, 5_000, 0.5, 15_000),
            (1_000, 5_000, 1.0, 1_000),
            (0, 0, 0.0, 1_000),
            (90_000, 5_000, 0.0, 30_000),
        ];
        for (last, took, filled, next) in cases {
            let seen = Seen { took: ms(took), filled };
            assert_eq!(next_interval(ms(last), seen), ms(next), "{last} ms, {seen:?}");
        }
        assert_eq!(next_interval(LONGEST, Seen { took: Duration::MAX, filled: 0.0 }), LONGEST);
    }

    #[test]
    fn a_refused_write_is_halved_down_to_one_sample_and_grows_again() {
        let halved: Vec<usize> =
            std::iter::successors(Some(MOST), |most| Some(next_most(*most, true))).take(11).collect();
        assert_eq!(halved, [500, 250, 125, 62, 31, 15, 7, 3, 1, 1, 1]);
        let grown: Vec<usize> = std::iter::successors(Some(1), |most| Some(next_most(*most, false))).take(11).collect();
        assert_eq!(grown, [1, 2, 4, 8, 16, 32, 64, 128, 256, 500, 500]);
    }
}
