//! How soon a change of a worker is seen on other pods, with few notices (L11).
//!
//! The first change after a quiet time is told with a notice. A pod that found a change reads again and again for a while
//! without one. So while changes follow each other, the owner need not tell each of them: it tells at most one in
//! [`TELL_GAP`], which is far less than the time for which readers stay awake.
//!
//! * **Authority.** The rows. A notice only hastens a read, and nothing depends on it.
//! * **States.** [`Reader`]: until when a pod reads by itself. [`Teller`]: when a pod may tell again.
//! * **Bound.** While it is awake, a pod reads once in [`pace`]. In a fleet of any size, all pods together make at most
//!   about 330 such reads a second, or two for each pod.
//! * **Failures.** A change whose notice is lost is found by the next reconciliation.
//! * **Not promised.** An order: only the last state of a row is seen.

use std::time::Duration;

use super::Moment;

/// How soon a pod of a small fleet that is awake reads again: 30 ms, so a change waits for 15 ms on average. Shorter costs
/// reads; longer delays a change.
const PACE_LEAST: Duration = Duration::from_millis(30);
/// How much longer each further peer makes the pace: 3 ms, so that all pods together make no more reads than a hundred
/// pods would. Less loads the server of a large fleet; more delays a change there.
const PACE_EACH: Duration = Duration::from_millis(3);
/// The longest pace: 500 ms. Longer, and a change would not be seen within a second.
const PACE_MOST: Duration = Duration::from_millis(500);
/// For how long a pod stays awake after it found a change: 1 s, and at least [`READS_LEAST`] reads. Longer costs reads that
/// find nothing; shorter costs notices. It must be longer than [`TELL_GAP`] and the time that a write takes.
const AWAKE: Duration = Duration::from_secs(1);
/// A pod stays awake for at least so many reads: 3.
const READS_LEAST: u32 = 3;
/// The least time between two notices of a pod: 250 ms, so at most four in a second. A NOTIFY delays the commits of all
/// other sessions for a moment, and wakes every listener of the database. Longer delays the first change after a pause.
pub const TELL_GAP: Duration = Duration::from_millis(250);

/// How soon a pod with so many peers that is awake reads again.
#[must_use]
pub fn pace(peers: usize) -> Duration {
    PACE_EACH.saturating_mul(u32::try_from(peers).unwrap_or(u32::MAX)).clamp(PACE_LEAST, PACE_MOST)
}

/// When a pod reads by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reader {
    /// When a read last found a change, or a notice came.
    stirred: Option<Moment>,
}

impl Reader {
    /// A read found a change, or a notice came, at `now`.
    pub const fn stir(&mut self, now: Moment) {
        self.stirred = Some(now);
    }

    /// How long until the next read, if a read has just ended at `now`. `None`: the pod waits for a notice.
    pub fn next(&mut self, now: Moment, peers: usize) -> Option<Duration> {
        let pace = pace(peers);
        let awake = AWAKE.max(pace * READS_LEAST);
        self.stirred = self.stirred.filter(|stirred| now.saturating_sub(*stirred) < awake);
        self.stirred.map(|_| pace)
    }
}

/// When a pod tells others that it has written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Teller {
    told: Option<Moment>,
    owes: bool,
}

impl Teller {
    /// Whether a write that begins at `now` tells the others.
    #[must_use]
    pub fn may_tell(&self, now: Moment) -> bool {
        self.told.is_none_or(|told| now.saturating_sub(told) >= TELL_GAP)
    }

    /// A write had ended at `now`. `told`: it told the others. If it did not, and took so long that they may be asleep
    /// again, the next write must tell them.
    pub fn wrote(&mut self, told: bool, now: Moment) {
        if told {
            (self.told, self.owes) = (Some(now), false);
        } else if self.told.is_none_or(|told| now.saturating_sub(told) >= TELL_GAP * 2) {
            self.owes = true;
        }
    }

    /// Whether the others must be told, although nothing changes.
    #[must_use]
    pub const fn owes(&self) -> bool {
        self.owes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_pace_of_a_small_fleet_is_30_ms_and_all_pods_of_a_large_one_make_about_330_reads_a_second() {
        for (peers, ms) in [(0, 30), (2, 30), (10, 30), (20, 60), (100, 300), (166, 498), (1000, 500)] {
            assert_eq!(pace(peers), MS * ms, "{peers}");
        }
    }

    #[test]
    fn a_pod_that_found_something_reads_for_a_second_and_then_waits_for_a_notice() {
        let mut reader = Reader::default();
        assert_eq!(reader.next(MS * 10_000, 2), None);
        reader.stir(MS * 10_000);
        assert_eq!(reader.next(MS * 10_001, 2), Some(MS * 30));
        assert_eq!(reader.next(MS * 10_999, 2), Some(MS * 30));
        assert_eq!(reader.next(MS * 11_000, 2), None);
        // In a large fleet, it is awake for three reads.
        reader.stir(MS * 20_000);
        assert_eq!(reader.next(MS * 21_400, 500), Some(MS * 500));
        assert_eq!(reader.next(MS * 21_500, 500), None);
    }

    #[test]
    fn at_most_four_notices_a_second_and_none_that_a_sleeping_reader_would_miss() {
        let mut teller = Teller::default();
        let told = (0..2000).filter(|ms| {
            let now = MS * (5000 + ms);
            let tells = teller.may_tell(now);
            teller.wrote(tells, now);
            tells
        });
        assert_eq!(told.count(), 8);
        // A write that may not tell follows a notice by less than the time for which its readers are awake.
        const { assert!(TELL_GAP.as_millis() * 2 < AWAKE.as_millis()) };
    }

    #[test]
    fn a_write_that_took_long_and_told_nobody_is_told_afterwards() {
        let mut teller = Teller::default();
        teller.wrote(true, MS * 5000);
        assert!(!teller.may_tell(MS * 5100));
        teller.wrote(false, MS * 5200);
        assert!(!teller.owes());
        teller.wrote(false, MS * 6900);
        assert!(teller.owes());
        teller.wrote(true, MS * 6950);
        assert!(!teller.owes());
    }
}
