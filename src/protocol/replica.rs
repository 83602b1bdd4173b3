//! How soon a change of a worker is seen on other pods, with few notices (L11).
//!
//! The first change after a quiet time is told with a notice. A pod that found a change reads again and again for a while
//! without one. So while changes follow each other, the owner need not tell each of them: it tells at most one in
//! [`tell_gap`], which is far less than the time for which readers stay awake.
//!
//! * **Authority.** The rows. A notice only hastens a read, and nothing depends on it.
//! * **States.** [`Reader`]: until when a pod reads by itself. [`Teller`]: when a pod may tell again.
//! * **Bound.** While it is awake, a pod reads once in [`pace`]. In a fleet of any size, all pods together make at most
//!   about 330 such reads a second, or two for each pod.
//! * **Failures.** A change whose notice is lost is found by the next comparison.
//! * **Not promised.** An order: only the last state of a row is seen.

use std::time::Duration;

use super::Moment;

/// How soon a pod of a small fleet that is awake reads again: 30 ms, so a change waits for 15 ms on average. Shorter costs
/// reads; longer delays a change.
const PACE_LEAST: Duration = Duration::from_millis(30);
/// How much longer each further peer makes the pace: 3 ms, so that 11 to 167 pods together make about 330 reads a second,
/// whatever their number. Less loads the server of a large fleet; more delays a change there.
const PACE_EACH: Duration = Duration::from_millis(3);
/// The longest pace: 500 ms. With a longer one, a change is seen only after a second. A shorter one loads the server of a
/// large fleet.
const PACE_MOST: Duration = Duration::from_millis(500);
/// A pod stays awake after it found a change for so many times the gap between two notices: 4, which is 1 s in a small
/// fleet. More costs reads that find nothing. Fewer leaves less room for slow writes and for clocks of different speed.
const AWAKE_GAPS: u32 = 4;
/// The least time between two notices of a pod of a small fleet: 250 ms, so at most four in a second. A NOTIFY delays the
/// commits of all other sessions for a moment, and wakes every listener of the database. Longer delays the first change
/// after a pause.
const TELL_GAP_LEAST: Duration = Duration::from_millis(250);
/// How much longer each further peer makes this gap: 5 ms, so that all pods together send no more than 200 notices a
/// second. PostgreSQL 15 managed about as many with 200 listeners. Less exceeds that; more shows a first change later.
const TELL_GAP_EACH: Duration = Duration::from_millis(5);

/// How soon a pod with so many peers that is awake reads again.
#[must_use]
pub fn pace(peers: usize) -> Duration {
    PACE_EACH.saturating_mul(u32::try_from(peers).unwrap_or(u32::MAX)).clamp(PACE_LEAST, PACE_MOST)
}

/// The least time between two notices of a pod with so many peers.
#[must_use]
pub fn tell_gap(peers: usize) -> Duration {
    TELL_GAP_EACH.saturating_mul(u32::try_from(peers).unwrap_or(u32::MAX)).max(TELL_GAP_LEAST)
}

/// When a pod reads by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reader {
    /// When a read last found a change.
    stirred: Option<Moment>,
}

impl Reader {
    /// A read found a change, and had ended at `now`.
    pub const fn stir(&mut self, now: Moment) {
        self.stirred = Some(now);
    }

    /// How long until the next read, if a read has just ended at `now`. `None`: the pod waits for a notice.
    pub fn next(&mut self, now: Moment, peers: usize) -> Option<Duration> {
        let awake = tell_gap(peers) * AWAKE_GAPS;
        self.stirred = self.stirred.filter(|stirred| now.saturating_sub(*stirred) < awake);
        self.stirred.map(|_| pace(peers))
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
    pub fn may_tell(&self, now: Moment, peers: usize) -> bool {
        self.told.is_none_or(|told| now.saturating_sub(told) >= tell_gap(peers))
    }

    /// A write that changed something had ended at `now`. `told`: it told the others. If it did not, and took so long
    /// that they may be asleep again, the next write must tell them.
    pub fn wrote(&mut self, told: bool, now: Moment, peers: usize) {
        if told {
            (self.told, self.owes) = (Some(now), false);
        } else if self.told.is_none_or(|told| now.saturating_sub(told) >= tell_gap(peers) * 2) {
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
        // In a large fleet, in which its peers tell more rarely, it is awake for longer.
        reader.stir(MS * 20_000);
        assert_eq!(reader.next(MS * 29_999, 500), Some(MS * 500));
        assert_eq!(reader.next(MS * 30_000, 500), None);
    }

    #[test]
    fn at_most_four_notices_a_second_and_none_that_a_sleeping_reader_would_miss() {
        let mut teller = Teller::default();
        let told = (0..2000).filter(|ms| {
            let now = MS * (5000 + ms);
            let tells = teller.may_tell(now, 2);
            teller.wrote(tells, now, 2);
            tells
        });
        assert_eq!(told.count(), 8);
        assert_eq!(tell_gap(200), MS * 1000);
    }

    #[test]
    fn a_write_that_took_long_and_told_nobody_is_told_afterwards() {
        let mut teller = Teller::default();
        teller.wrote(true, MS * 5000, 2);
        assert!(!teller.may_tell(MS * 5100, 2));
        teller.wrote(false, MS * 5200, 2);
        assert!(!teller.owes());
        teller.wrote(false, MS * 6900, 2);
        assert!(teller.owes());
        teller.wrote(true, MS * 6950, 2);
        assert!(!teller.owes());
    }
}
