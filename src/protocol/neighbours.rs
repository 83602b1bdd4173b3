//! What a pod of a large fleet probes in a sweep: its neighbours, and only now and then the whole roster.
//!
//! A whole roster probe costs as much as the roster is long. If every pod of a fleet made one in every sweep, their
//! cost would grow with the square of the number of pods. So a pod probes the [`NEIGHBOURS`] rows that follow its own
//! in the ring of keys, and the whole roster as much more rarely as the roster is longer than that.
//!
//! * **Authority.** None. A probe of the neighbours decides nothing about a pod. It shows whether a whole probe is
//!   needed now, and every verdict is made on a whole probe.
//! * **Bound.** A dead pod is found within one sweep, as in a small fleet. The rows of dead pods that follow each other
//!   in the ring come after the row of a living pod, and that pod's neighbours include the first of them.
//! * **Who is told.** Up to PostgreSQL 18, a notification wakes every pod. In a large fleet, that costs
//!   most exactly when one of them buries. So a watch that finds a lock free tells the fleet only if few pods sweep the row
//!   ([`tells_of`]). If the burier freezes, the sweeps of the others find the dead pod.
//! * **Not promised.** A whole probe for the sake of the log and of the settings of others comes rarely in a large
//!   fleet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::portions::Portion;
use super::ring::RingPlace;
use crate::id::{Incarnation, LockKey};

/// How many rows a pod probes in a sweep: 16. A fleet that is not larger is probed whole. More cost each pod more in
/// every sweep. With fewer, a sequence of dead pods more often hides which living pod to watch next, until a whole probe
/// shows it.
pub const NEIGHBOURS: usize = 16;

/// Whether a pod with so many peers probes all of them in each sweep.
#[must_use]
pub const fn are_all(peers: usize) -> bool {
    peers <= NEIGHBOURS
}

/// If at least 8 other pods of a large fleet sweep a row, a watch that finds its lock free does not notify the fleet. Their
/// sweeps are spread over a sweep interval, so one of them comes within a ninth of it, on average. With
/// fewer, a burier that freezes delays the burial for longer. With more, a few dead rows in the ring make watches tell
/// the whole fleet.
pub const SWEEPERS_ENOUGH: usize = 8;

/// Whether a watch on the pod with the key `watched` tells every pod if it finds the lock free, in a fleet in which the
/// watching pod has so many `peers`.
///
/// `roster`: all other rows, in the order of their keys. `in_sight`: the peers whose locks are free. They sweep nothing.
#[must_use]
pub fn tells_of(watched: LockKey, peers: usize, roster: &[RingPlace], in_sight: &BTreeSet<Incarnation>) -> bool {
    are_all(peers) || sweepers(watched, roster, in_sight) < SWEEPERS_ENOUGH
}

/// How many other pods have the row with the key `watched` among their neighbours: the living ones of the
/// [`NEIGHBOURS`] rows before it in the ring.
fn sweepers(watched: LockKey, roster: &[RingPlace], in_sight: &BTreeSet<Incarnation>) -> usize {
    let (before, behind) = roster.split_at(roster.partition_point(|place| place.lock_key < watched));
    let before = before.iter().rev().chain(behind.iter().rev()).filter(|place| place.lock_key != watched);
    // One of the places is that of the watching pod, whose row is not in `roster`: only dead rows are between the two.
    before.take(NEIGHBOURS - 1).filter(|place| !in_sight.contains(&place.incarnation)).count()
}

/// How often a pod with so many peers does what costs as much as the roster is long, if a pod with few peers does it
/// every `often`.
#[must_use]
pub fn rarer(often: Duration, peers: usize) -> Duration {
    let times = u32::try_from(peers.div_ceil(NEIGHBOURS)).unwrap_or(u32::MAX);
    if are_all(peers) { often } else { often.saturating_mul(times) }
}

/// A delay before something that all pods of a fleet do because of one notice: `each` per pod, times `random`, which is
/// at most one. So the server sees at most about one of them per `each`. A small fleet does it at once.
#[must_use]
pub fn spread(each: Duration, peers: usize, random: f64) -> Duration {
    if are_all(peers) {
        return Duration::ZERO;
    }
    each.saturating_mul(u32::try_from(peers).unwrap_or(u32::MAX)).mul_f64(random.clamp(0.0, 1.0))
}

/// Which peers count towards the size of the fleet, by what the last whole probes showed.
///
/// While another pod probes, the locks of dead pods look held. So a peer counts once it was held in three whole
/// probes, and no longer counts once it was free in as many. A restart of the database frees the locks of the whole
/// fleet for a moment, and does not make a large fleet look small.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steady(BTreeMap<Incarnation, u8>);

/// How many whole probes make sure of a peer: 3. Fewer let two pods that probe at the same time mislead each other;
/// more keep a new fleet probing whole rosters for longer.
const SURE: u8 = 3;

impl Steady {
    /// Notes a whole probe: each peer, and whether its liveness lock was held. Peers that are gone are forgotten.
    pub fn note(&mut self, probe: impl Iterator<Item = (Incarnation, bool)>) {
        let next = |before: u8, is_held: bool| match (before, is_held) {
            (before, true) if before + 1 >= SURE => 2 * SURE,
            (before, true) => before + 1,
            // It takes as many free probes to be out again.
            (before, false) if before > SURE + 1 => before - 1,
            (_, false) => 0,
        };
        let peers = probe.map(|(peer, is_held)| (peer, next(self.0.get(&peer).copied().unwrap_or(0), is_held)));
        self.0 = peers.collect();
    }

    /// How many peers count.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.values().filter(|steps| **steps > SURE).count()
    }
}

/// A probe of the neighbours in progress: from the pod's own row on, once round the ring at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbours {
    own: i64,
    left: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// From the own key to the end of the keys.
    Behind,
    /// From the beginning of the keys to the own key.
    Before,
    /// Every row up to this key was read, from the own key on.
    Upto(i64),
    /// Every row of the roster was read.
    All,
}

impl Neighbours {
    /// Begins a probe for the pod with this key.
    #[must_use]
    pub const fn begin(own: i64) -> Self {
        Self { own, left: NEIGHBOURS + 1, stage: Stage::Behind }
    }

    /// The next statement. `None`: enough rows were read.
    #[must_use]
    pub fn next(&self) -> Option<Portion> {
        let portion = |from, upto| Portion { from, upto, most: self.left, probe: true };
        match self.stage {
            Stage::Behind => Some(portion(self.own, i64::MAX)),
            Stage::Before => Some(portion(i64::MIN, self.own.saturating_sub(1))),
            Stage::Upto(_) | Stage::All => None,
        }
    }

    /// Notes that the statement returned rows with these keys, in order.
    pub fn returned(&mut self, keys: &[i64]) {
        let is_full = keys.len() >= self.left;
        self.left = self.left.saturating_sub(keys.len());
        self.stage = match (self.stage, keys.last()) {
            (Stage::Behind | Stage::Before, Some(last)) if is_full => Stage::Upto(*last),
            (Stage::Behind, _) if self.own > i64::MIN => Stage::Before,
            (Stage::Behind | Stage::Before, _) => Stage::All,
            (done, _) => done,
        };
    }

    /// Whether a row with this key would have been among the rows that were read.
    #[must_use]
    pub const fn covers(&self, key: i64) -> bool {
        match self.stage {
            Stage::Behind | Stage::Before => false,
            Stage::Upto(last) if last >= self.own => self.own <= key && key <= last,
            Stage::Upto(last) => key >= self.own || key <= last,
            Stage::All => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Probes the neighbours of `own` among rows with these keys. Returns the keys that were read, and the probe.
    fn probe(own: i64, keys: &BTreeSet<i64>) -> (Vec<i64>, Neighbours) {
        let (mut neighbours, mut read) = (Neighbours::begin(own), Vec::new());
        while let Some(Portion { from, upto, most, .. }) = neighbours.next() {
            assert!(read.len() <= NEIGHBOURS, "it does not end: {neighbours:?}");
            let rows: Vec<i64> = keys.iter().copied().filter(|k| (from..=upto).contains(k)).take(most).collect();
            neighbours.returned(&rows);
            read.extend(rows);
        }
        (read, neighbours)
    }

    proptest! {
        #[test]
        fn the_own_row_and_those_that_follow_it_in_the_ring_are_read_once(
            keys in proptest::collection::btree_set(
                prop_oneof![any::<i64>(), -40_i64..40, Just(i64::MIN), Just(i64::MAX)],
                1..60,
            ),
            nth in any::<prop::sample::Index>(),
        ) {
            let own = *nth.get(&keys.iter().copied().collect::<Vec<_>>());
            let (read, neighbours) = probe(own, &keys);
            let ring: Vec<i64> = keys.range(own..).chain(keys.range(..own)).copied().take(NEIGHBOURS + 1).collect();
            prop_assert_eq!(&read, &ring);
            // A row is covered exactly if it was read: so a row that is gone is known to be gone.
            for key in &keys {
                prop_assert_eq!(neighbours.covers(*key), read.contains(key), "{}", key);
            }
        }

        /// The bound: whichever pods die, each of the dead that follows a living pod in the ring is read by that pod.
        #[test]
        fn the_first_of_each_run_of_dead_pods_is_read_by_a_living_one(
            keys in proptest::collection::btree_set(any::<i64>(), 2..80),
            dead in proptest::collection::vec(any::<bool>(), 80),
        ) {
            let all: Vec<i64> = keys.iter().copied().collect();
            let dies = |i: usize| dead[i % dead.len()];
            for (i, key) in all.iter().enumerate() {
                let next = (i + 1) % all.len();
                if !dies(i) && dies(next) {
                    prop_assert!(probe(*key, &keys).0.contains(&all[next]));
                }
            }
        }
    }

    #[test]
    fn a_peer_counts_after_three_probes_and_no_longer_after_three() {
        let (peer, mut steady) = (Incarnation::generate(), Steady::default());
        let mut after = |held: &[bool]| {
            held.iter().for_each(|held| steady.note([(peer, *held)].into_iter()));
            steady.count()
        };
        assert_eq!(after(&[true, true]), 0);
        assert_eq!(after(&[false, true, true]), 0, "another prober held it for a moment");
        assert_eq!(after(&[true]), 1);
        assert_eq!(after(&[false, false]), 1, "a restart of the database");
        assert_eq!(after(&[true, false, false]), 1);
        assert_eq!(after(&[false]), 0);
        steady.note([(peer, true); 1].into_iter());
        steady.note(std::iter::empty());
        assert_eq!(steady, Steady::default());
    }

    /// Ten keys apart, the pod with the key 0 watches, and its own row is not in the roster.
    #[test]
    fn a_watch_tells_the_fleet_unless_the_fleet_is_large_and_eight_others_sweep_the_row() {
        let roster: Vec<_> = (1..=40)
            .map(|i| RingPlace {
                incarnation: Incarnation::generate(),
                lock_key: (i * 10).into(),
                witness_key: (i * 10 + 1).into(),
            })
            .collect();
        // Which of the pods are dead and in sight, by their place; and which pod is watched.
        let tells = |dead: &[usize], watched: usize, peers: usize| {
            let in_sight = dead.iter().map(|i| roster[*i].incarnation).collect();
            tells_of(roster[watched].lock_key, peers, &roster, &in_sight)
        };
        let last: Vec<usize> = (26..40).collect();
        for (what, dead, watched, peers, expected) in [
            ("a small fleet", &[][..], 0, 16, true),
            ("a large fleet, in which all live", &[], 0, 40, false),
            ("seven of the fifteen before it are dead", &last[7..], 0, 33, false),
            ("eight of the fifteen", &last[6..], 0, 32, true),
            ("the dead are further away", &[20, 21, 22, 23, 24][..], 0, 35, false),
            ("dead rows between the two take places", &[0, 1, 2, 3, 4, 5, 6][..], 7, 33, false),
            ("one more", &[0, 1, 2, 3, 4, 5, 6, 7][..], 8, 32, true),
        ] {
            assert_eq!(tells(dead, watched, peers), expected, "{what}");
        }
        // The roster holds fewer rows than there are living peers for certain: it was read in part.
        assert!(tells_of(roster[3].lock_key, 40, &roster[3..8], &BTreeSet::new()));
    }

    /// The promise behind it: whoever is counted has the row among the neighbours that its sweep reads.
    #[test]
    fn whoever_sweeps_a_row_probes_it() {
        let keys: BTreeSet<i64> = (0..41).map(|i| i * 10).collect();
        let watched = 0;
        let before: Vec<i64> = keys.iter().rev().copied().take(NEIGHBOURS).collect();
        let sweeps = |own: &i64| probe(*own, &keys).0.contains(&watched);
        assert!(before.iter().all(sweeps));
        assert_eq!(keys.iter().filter(|own| **own != watched && sweeps(own)).count(), NEIGHBOURS);
    }

    #[test]
    fn a_small_fleet_does_everything_as_often_and_as_soon_as_ever() {
        let second = Duration::from_secs(1);
        for peers in 0..=NEIGHBOURS {
            assert!(are_all(peers));
            assert_eq!((rarer(second, peers), spread(second, peers, 1.0)), (second, Duration::ZERO));
        }
    }

    /// Of a fleet of any size, about as many whole probes are made in a second as of a small one.
    #[test]
    fn the_whole_fleet_does_what_is_long_at_a_bounded_rate() {
        let second = Duration::from_secs(1);
        for pods in [18_usize, 50, 200, 500, 10_000] {
            let a_second = pods as f64 / rarer(second, pods - 1).as_secs_f64();
            assert!((8.0..=16.5).contains(&a_second), "{pods} pods: {a_second}");
            let longest = spread(Duration::from_millis(5), pods, 1.0).as_secs_f64();
            assert!((pods as f64 / longest - 200.0).abs() < 1.0, "{pods} pods: {longest}");
        }
        assert_eq!(rarer(Duration::MAX, 1000), Duration::MAX);
    }
}
