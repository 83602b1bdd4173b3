//! Which pods run but make no progress.
//!
//! * **Authority.** A pod writes the next value of one global index into its row at each beat, if its application made
//!   [`Progress`] since the last beat. Progress means: something moved, and no required source stands still. A peer
//!   compares each index with the index that the peer itself saw before. No pod reads another pod's clock.
//! * **States.** For each peer: the index that was seen, and for how many checks it has not changed.
//! * **Bound.** A pod is suspected `cycles` to `cycles` + 1 checks after its last beat; checks are one interval apart.
//!   A peer that beats less often than the observer checks gets as many more checks as that takes
//!   ([`StallTiming::cycles_for`]).
//! * **Failures.** A check counts only if nine tenths of an interval passed since the last one, by the observer's own
//!   clock. So a paused observer that wakes counts one check. If the observer's own index did not change either, the
//!   store is slow or the observer itself stands still: no peer is counted. A peer that is opening its sessions again
//!   is not counted.
//! * **Not promised.** The row of a pod of an older version does not say how often it beats. Such a pod may be
//!   suspected wrongly if its beats are farther apart than the observer's checks.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Moment;
use crate::id::Incarnation;

/// How many leases an evicted pod waits at most for its application to make progress. Fewer: a pod that still hangs
/// comes back and is evicted again and again. More: a pod whose sources only runs can move stays away needlessly.
const LEASES_AWAY: u32 = 10;

/// The times of the stall rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StallTiming {
    /// How far apart checks are that count: `beat_interval`.
    pub interval: Duration,
    /// After how many checks with the same index a peer is suspected: `stall_cycles`.
    pub cycles: u32,
}

impl StallTiming {
    /// After how many checks with the same index a peer is suspected whose beats are `every` apart. The checks must
    /// cover `cycles` of the peer's own intervals. Otherwise a healthy pod with rarer beats would be suspected.
    #[must_use]
    pub fn cycles_for(&self, every: Option<Duration>) -> u32 {
        let Some(every) = every.filter(|every| *every > self.interval) else { return self.cycles };
        let looks =
            (every.as_nanos().saturating_mul(u128::from(self.cycles))).div_ceil(self.interval.as_nanos().max(1));
        u32::try_from(looks).unwrap_or(u32::MAX)
    }
}

/// What one check showed of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Its registration.
    pub incarnation: Incarnation,
    /// Its event index.
    pub index: i64,
    /// Both of its locks are held by the backends that its row names.
    pub attached: bool,
    /// The longest time between two of its beats, if its row states it.
    pub every: Option<Duration>,
}

/// A peer whose index has not changed for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// Its registration.
    pub incarnation: Incarnation,
    /// The index that does not change.
    pub index: i64,
    /// For how many checks the index has not changed.
    pub looks: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    index: i64,
    looks: u32,
}

/// What an observer remembers between checks. It is local to the process and empty at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StallObserver {
    counted_at: Option<Moment>,
    own: Option<i64>,
    peers: BTreeMap<Incarnation, Count>,
}

impl StallObserver {
    /// Makes a check: returns the peers that are suspected by it, and what to remember.
    #[must_use]
    pub fn look(&self, timing: &StallTiming, now: Moment, own: i64, beats: &[Beat]) -> (Vec<Stalled>, Self) {
        let too_soon = self.counted_at.is_some_and(|at| now.saturating_sub(at) < timing.interval * 9 / 10);
        if too_soon {
            return (Vec::new(), self.clone());
        }
        let own_moved = self.own.is_some_and(|before| before != own);
        let mut peers = BTreeMap::new();
        let mut stalled = Vec::new();
        for beat in beats {
            let seen = self.peers.get(&beat.incarnation).filter(|c| c.index == beat.index && beat.attached);
            let looks = seen.map_or(0, |c| c.looks.saturating_add(u32::from(own_moved)));
            peers.insert(beat.incarnation, Count { index: beat.index, looks });
            if own_moved && looks >= timing.cycles_for(beat.every) {
                stalled.push(Stalled { incarnation: beat.incarnation, index: beat.index, looks });
            }
        }
        (stalled, Self { counted_at: Some(now), own: Some(own), peers })
    }
}

/// What an application has done so far, as counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Raised by a task of the application's runtime. Shows that the runtime runs tasks at all.
    pub pulse: u64,
    /// Fenced writes that were accepted.
    pub writes: u64,
    /// The registered sources by number, each with how often it moved and whether it is idle.
    pub sources: BTreeMap<u64, Source>,
}

/// One registered source of progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// How often it moved.
    pub moved: u64,
    /// It has nothing to do, so it may stand still.
    pub idle: bool,
    /// It must move itself unless it is idle. Progress elsewhere does not count for it.
    pub required: bool,
}

/// Whether an application made progress between two readings of its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// It made progress.
    Yes,
    /// Nothing moved, although there was something to do.
    No,
    /// The required source with this number has something to do and stands still. Progress elsewhere does not count.
    NotRequired(u64),
}

impl Progress {
    /// Whether the application has made progress since `before`.
    ///
    /// The runtime must have run a task. Besides, a fenced write was accepted, or a source moved, or all sources are
    /// idle. A required source must move itself.
    #[must_use]
    pub fn since(&self, before: &Self) -> Moved {
        // A new source counts as moved until the next reading.
        let moved =
            |number: &u64, source: &Source| before.sources.get(number).is_none_or(|then| then.moved != source.moved);
        let stuck =
            self.sources.iter().find(|(number, source)| source.required && !source.idle && !moved(number, source));
        if let Some((number, _)) = stuck {
            return Moved::NotRequired(*number);
        }
        let anything = self.writes != before.writes
            || self.sources.values().all(|source| source.idle)
            || self.sources.iter().any(|(number, source)| moved(number, source));
        if self.pulse != before.pulse && anything { Moved::Yes } else { Moved::No }
    }
}

/// Whether an evicted pod rejoins although its application has made no progress since. An evicted pod has no runs, so a
/// source that only runs can move must not keep it away for ever.
#[must_use]
pub fn was_away_for_long(away: Duration, lease: Duration) -> bool {
    away > lease.saturating_mul(LEASES_AWAY)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const TIMING: StallTiming = StallTiming { interval: Duration::from_secs(10), cycles: 3 };

    fn peer(n: u128) -> Incarnation {
        Incarnation::from(Uuid::from_u128(n))
    }

    fn at(n: u128, index: i64) -> Beat {
        Beat { incarnation: peer(n), index, attached: true, every: None }
    }

    /// Makes checks at these seconds, with these own indices, of these peers. Returns the peers that were suspected at
    /// each check.
    fn looks(steps: &[(u64, i64, &[Beat])]) -> Vec<Vec<(Incarnation, u32)>> {
        let mut observer = StallObserver::default();
        let mut suspected = Vec::new();
        for (second, own, beats) in steps {
            let (stalled, next) = observer.look(&TIMING, Duration::from_secs(*second), *own, beats);
            suspected.push(stalled.iter().map(|s| (s.incarnation, s.looks)).collect());
            observer = next;
        }
        suspected
    }

    const NOBODY: Vec<(Incarnation, u32)> = Vec::new();

    #[test]
    fn one_that_stands_still_is_suspected_at_the_third_look_at_the_same_index_and_at_each_after_it() {
        let same: &[Beat] = &[at(1, 7)];
        let seen = looks(&[(0, 1, same), (10, 2, same), (20, 3, same), (30, 4, same), (40, 5, same)]);
        assert_eq!(seen, [NOBODY, NOBODY, NOBODY, vec![(peer(1), 3)], vec![(peer(1), 4)]]);
    }

    #[test]
    fn one_that_beats_less_often_than_the_observer_looks_gets_as_many_intervals_of_its_own() {
        let s = Duration::from_secs;
        let cases =
            [(None, 3), (Some(s(1)), 3), (Some(s(10)), 3), (Some(s(15)), 5), (Some(s(30)), 9), (Some(s(31)), 10)];
        for (every, looks) in cases {
            assert_eq!(TIMING.cycles_for(every), looks, "{every:?}");
        }
        let longest = StallTiming { interval: Duration::from_nanos(1), cycles: u32::MAX };
        assert_eq!(longest.cycles_for(Some(Duration::MAX)), u32::MAX);
        // It beats every 30 s and is healthy.
        let slow = |index| [Beat { every: Some(s(30)), ..at(1, index) }];
        let steps: Vec<_> = (0..30_u64).map(|n| (n * 10, slow(i64::try_from(n / 3).expect("few")))).collect();
        let steps: Vec<(u64, i64, &[Beat])> =
            steps.iter().zip(0..).map(|((second, beats), own)| (*second, own, beats.as_slice())).collect();
        assert!(looks(&steps).iter().all(Vec::is_empty));
        // It has stopped beating.
        let stands = slow(7);
        let steps: Vec<(u64, i64, &[Beat])> = (0..11).map(|n| (n * 10, n as i64, stands.as_slice())).collect();
        let seen = looks(&steps);
        assert_eq!(seen[8], NOBODY);
        assert_eq!(seen[9], [(peer(1), 9)]);
    }

    #[test]
    fn one_that_was_never_heard_of_begins_at_nought_and_one_that_moves_begins_again() {
        let seen = looks(&[
            (0, 1, &[at(1, 7)]),
            (10, 2, &[at(1, 7), at(2, 1)]),
            (20, 3, &[at(1, 7), at(2, 1)]),
            (30, 4, &[at(1, 8), at(2, 1)]),
            (40, 5, &[at(1, 8), at(2, 1)]),
        ]);
        assert_eq!(seen, [NOBODY, NOBODY, NOBODY, NOBODY, vec![(peer(2), 3)]]);
    }

    #[test]
    fn while_the_store_is_slow_nobody_is_counted() {
        let same: &[Beat] = &[at(1, 7)];
        // From second 20 to second 40, the observer's own beat did not arrive either.
        let seen = looks(&[(0, 1, same), (10, 2, same), (20, 2, same), (30, 2, same), (40, 2, same), (50, 3, same)]);
        assert!(seen.iter().all(Vec::is_empty), "{seen:?}");
    }

    #[test]
    fn a_paused_observer_and_a_burst_of_ticks_count_one_look() {
        let same: &[Beat] = &[at(1, 7)];
        // It was paused for an hour, and then its timers fire all at once.
        let burst = [(0, 1, same), (3600, 2, same), (3600, 3, same), (3601, 4, same), (3609, 5, same), (3610, 6, same)];
        assert!(looks(&burst).iter().all(Vec::is_empty));
    }

    #[test]
    fn one_that_mends_its_sessions_is_not_stalled() {
        let mending = [Beat { attached: false, ..at(1, 7) }];
        let same: &[Beat] = &[at(1, 7)];
        let seen =
            looks(&[(0, 1, same), (10, 2, same), (20, 3, same), (30, 4, &mending), (40, 5, same), (50, 6, same)]);
        assert!(seen.iter().all(Vec::is_empty), "{seen:?}");
    }

    #[test]
    fn gone_and_back_under_a_new_incarnation_is_somebody_else_and_the_gone_are_forgotten() {
        let (old, new): (&[Beat], &[Beat]) = (&[at(1, 7)], &[at(2, 7)]);
        let seen = looks(&[(0, 1, old), (10, 2, old), (20, 3, old), (30, 4, new), (40, 5, new), (50, 6, new)]);
        assert!(seen.iter().all(Vec::is_empty), "{seen:?}");
        let (_, observer) = StallObserver::default().look(&TIMING, Duration::ZERO, 1, old);
        let (_, pruned) = observer.look(&TIMING, Duration::from_secs(10), 2, &[]);
        assert!(pruned.peers.is_empty());
    }

    #[test]
    fn an_evicted_pod_is_tried_again_after_ten_leases() {
        let lease = Duration::from_secs(3);
        assert!(!was_away_for_long(Duration::from_secs(30), lease));
        assert!(was_away_for_long(Duration::from_millis(30_001), lease));
    }

    #[test]
    fn an_observer_that_was_restarted_begins_at_nought() {
        let same: &[Beat] = &[at(1, 7)];
        let (stalled, _) = StallObserver::default().look(&TIMING, Duration::from_secs(99), 9, same);
        assert_eq!(stalled, []);
    }

    fn progress(pulse: u64, writes: u64, sources: &[(u64, u64, bool, bool)]) -> Progress {
        let source =
            |&(number, moved, idle, required): &(u64, u64, bool, bool)| (number, Source { moved, idle, required });
        Progress { pulse, writes, sources: sources.iter().map(source).collect() }
    }

    #[test]
    fn any_progress_is_progress_of_a_runtime_that_runs() {
        let before = progress(1, 1, &[(1, 5, false, false), (2, 5, false, false), (3, 5, true, false)]);
        let cases: [(_, &[_], _, _); 10] = [
            ((2, 1), &[(1, 6, false), (2, 5, false)], Moved::Yes, "one of two busy ones moved, and that is enough"),
            ((2, 1), &[(1, 5, false), (2, 6, true)], Moved::Yes, "one moved before it became idle"),
            (
                (2, 1),
                &[(1, 5, false), (2, 5, true)],
                Moved::No,
                "the idle one is no progress, and the busy one stands still",
            ),
            ((2, 1), &[(1, 5, true), (2, 5, true)], Moved::Yes, "none has anything to do"),
            ((2, 2), &[(1, 5, false), (2, 5, false)], Moved::Yes, "a write was accepted"),
            ((2, 1), &[(1, 5, false), (2, 5, false)], Moved::No, "nothing moved"),
            ((1, 2), &[(1, 6, false), (2, 5, true)], Moved::No, "the runtime runs nothing"),
            ((2, 1), &[], Moved::Yes, "no sources are left: the pulse is enough"),
            ((2, 1), &[(1, 5, false), (4, 0, false)], Moved::Yes, "one that is new has until the next reading"),
            ((1, 1), &[], Moved::No, "without sources, a runtime that stands still"),
        ];
        for ((pulse, writes), sources, expected, why) in cases {
            let sources: Vec<_> = sources.iter().map(|(n, moved, idle)| (*n, *moved, *idle, false)).collect();
            assert_eq!(progress(pulse, writes, &sources).since(&before), expected, "{why}");
        }
    }

    #[test]
    fn a_required_source_must_move_itself_unless_it_is_idle() {
        let before = progress(1, 1, &[(1, 5, false, false), (2, 5, false, true)]);
        let cases: [(_, &[_], _, _); 5] = [
            ((2, 2), &[(1, 6, false, false), (2, 5, false, true)], Moved::NotRequired(2), "all else moved"),
            ((2, 1), &[(1, 6, false, false), (2, 5, true, true)], Moved::Yes, "it is idle"),
            (
                (2, 1),
                &[(1, 5, false, false), (2, 6, false, true)],
                Moved::Yes,
                "it moved, and any progress is progress",
            ),
            ((2, 1), &[(1, 6, false, false)], Moved::Yes, "it was dropped"),
            (
                (2, 1),
                &[(2, 6, false, true), (3, 0, false, true)],
                Moved::Yes,
                "one that is new has until the next reading",
            ),
        ];
        for ((pulse, writes), sources, expected, why) in cases {
            assert_eq!(progress(pulse, writes, sources).since(&before), expected, "{why}");
        }
    }
}
