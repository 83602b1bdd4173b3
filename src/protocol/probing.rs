//! When a worker is probed, and what the results say of its health.
//!
//! * **Authority.** The owner's probes decide the health of a worker in the registry. An importer's probes only advise
//!   the importer itself.
//! * **States.** [`Counts`]: the results in a row of one worker. [`Schedule`]: when each worker is probed next, and
//!   which probes are under way.
//! * **Bound.** A worker that stops answering is `not_ready` after `fail_after` intervals, each up to a tenth longer,
//!   plus one time-out, if the prober has free slots. A worker has at most one probe under way.
//! * **Failures.** A process that slept probes each worker once, and not once for each interval that it missed. These
//!   late probes are spread as first probes are.
//! * **Not promised.** That all probes begin on time. If more are due than there are slots, the probe that is overdue
//!   the longest begins first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use super::Moment;
use super::worker::Health;

/// After how many failures in a row a worker stops being ready, unless its check says otherwise: 3, as in Kubernetes.
/// With 1, one lost packet takes a worker out of service. With more, clients meet a dead worker for longer.
pub const FAIL_AFTER: u32 = 3;
/// After how many successes in a row a worker is ready, unless its check says otherwise: 1, as in Kubernetes. With
/// more, a worker starts to serve later. A worker that fails every other probe wants more.
pub const READY_AFTER: u32 = 1;
/// After how many failures in a row a worker has failed, unless its check says otherwise: 30, which is five minutes of
/// the default interval. With fewer, a worker that loads a large model fails before it is up. With more, people wait
/// longer for a worker that never comes.
pub const GIVE_UP_AFTER: u32 = 30;
/// How much longer or shorter than its interval the time between two probes may be: a tenth. Without jitter, workers
/// that were registered together are probed together for ever. With more, a failure is noticed late.
pub const JITTER: f64 = 0.1;
/// How much time each first probe adds to the time over which first probes are spread: 1 ms. So 10,000 workers that
/// come at once are probed within 10 s, 1,000 each second. A shorter time makes bursts of connections and name lookups.
/// A longer one keeps workers of large fleets pending.
pub const FIRST_GAP: Duration = Duration::from_millis(1);
/// Over what time the first probe of a single worker is spread at least: 100 ms, or a tenth of its interval if that is
/// shorter. A worker may be imported by many pods at the same moment. A shorter time makes all of them connect at once.
/// A longer one delays a worker that is alone.
pub const FIRST_WITHIN: Duration = Duration::from_millis(100);
/// How late a probe with a free slot must be to show that the process slept: 1 s. With a shorter time, a busy runtime
/// looks like a pause. With a longer one, the probes of so long a pause begin in one burst.
pub const LATE: Duration = Duration::from_secs(1);

/// After how many results in a row the health of a worker changes. A count of 0 means 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Successes until the worker is ready.
    pub ready_after: u32,
    /// Failures until the worker stops being ready.
    pub fail_after: u32,
    /// Failures until the worker has failed.
    pub give_up_after: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { ready_after: READY_AFTER, fail_after: FAIL_AFTER, give_up_after: GIVE_UP_AFTER }
    }
}

/// The last results of one worker: how many in a row were the same. At most one of the two numbers is above 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    successes: u32,
    failures: u32,
}

impl Counts {
    /// A probe has ended.
    pub fn note(&mut self, passed: bool) {
        *self = if passed {
            Self { successes: self.successes.saturating_add(1), failures: 0 }
        } else {
            Self { successes: 0, failures: self.failures.saturating_add(1) }
        };
    }

    /// How many probes in a row have failed.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The health of a worker that was `before`. An owner that has just begun to count changes nothing until enough
    /// results have come.
    #[must_use]
    pub fn health(&self, before: Health, thresholds: &Thresholds) -> Health {
        let Thresholds { ready_after, fail_after, give_up_after } = *thresholds;
        match before {
            // Only the owner's word ends this.
            Health::Draining => Health::Draining,
            _ if self.successes >= ready_after.max(1) => Health::Ready,
            _ if self.failures >= give_up_after.max(1) => Health::Failed,
            // Nothing is known of it any more that speaks for it.
            Health::Pending if self.failures > 0 => Health::NotReady,
            Health::Ready if self.failures >= fail_after.max(1) => Health::NotReady,
            Health::Pending | Health::NotReady | Health::Ready | Health::Failed => before,
        }
    }
}

/// When each worker is probed next. `dice` is a random number from 0 to 1.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    workers: BTreeMap<Uuid, Entry>,
    /// The workers without a probe under way, the one that is due first at the front.
    queue: BTreeSet<(Moment, Uuid)>,
    /// How many workers of the queue wait for their first probe.
    first: u32,
    /// The last [`Schedule::take`] left slots free, so no due probe waited for one.
    had_slots: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    interval: Duration,
    probe: Probe,
}

#[derive(Clone, Copy, Debug)]
enum Probe {
    Waits { due: Moment, is_first: bool },
    UnderWay { began: Moment },
}

impl Schedule {
    /// These workers are probed from now on, each in its interval. Their first probes are spread, so that many workers
    /// that come together make no burst. A worker that is known keeps its turn. If its interval is shorter now, the
    /// turn comes within it.
    pub fn add(&mut self, workers: &[(Uuid, Duration)], now: Moment, mut dice: impl FnMut() -> f64) {
        let is_new = |(worker, _): &&(Uuid, Duration)| !self.workers.contains_key(worker);
        let waiting = workers.iter().filter(is_new).count();
        let spread = FIRST_GAP * self.first.saturating_add(u32::try_from(waiting).unwrap_or(u32::MAX));
        for &(worker, interval) in workers {
            let probe = match self.workers.get(&worker) {
                None => {
                    self.first += 1;
                    let within = spread.min(interval).max(FIRST_WITHIN.min(interval / 10));
                    Probe::Waits { due: now + within.mul_f64(dice()), is_first: true }
                }
                Some(entry) if entry.interval == interval => continue,
                Some(Entry { probe: Probe::Waits { due, is_first }, .. }) => {
                    self.queue.remove(&(*due, worker));
                    let within = interval.mul_f64(dice());
                    Probe::Waits { due: *due.min(&(now + within)), is_first: *is_first }
                }
                Some(Entry { probe, .. }) => *probe,
            };
            if let Probe::Waits { due, .. } = probe {
                self.queue.insert((due, worker));
            }
            self.workers.insert(worker, Entry { interval, probe });
        }
    }

    /// The worker is no longer probed. A probe under way is forgotten.
    pub fn forget(&mut self, worker: Uuid) {
        if let Some(Entry { probe: Probe::Waits { due, is_first }, .. }) = self.workers.remove(&worker) {
            self.queue.remove(&(due, worker));
            self.first -= u32::from(is_first);
        }
    }

    /// When the next probe is due that is not under way. `None`: none waits.
    #[must_use]
    pub fn due(&self) -> Option<Moment> {
        self.queue.first().map(|(due, _)| *due)
    }

    /// The workers whose probes begin now, given so many free slots: the longest overdue first. [`Schedule::ended`]
    /// must follow for each, or [`Schedule::forget`].
    pub fn take(&mut self, now: Moment, slots: usize) -> Vec<Uuid> {
        if self.had_slots && self.due().is_some_and(|due| now.saturating_sub(due) > LATE) {
            self.spread_after_a_pause(now);
        }
        let mut taken = Vec::new();
        while taken.len() < slots
            && let Some((due, worker)) = self.queue.first().copied()
            && due <= now
        {
            self.queue.pop_first();
            if let Some(entry) = self.workers.get_mut(&worker) {
                self.first -= u32::from(matches!(entry.probe, Probe::Waits { is_first: true, .. }));
                entry.probe = Probe::UnderWay { began: now };
                taken.push(worker);
            }
        }
        self.had_slots = taken.len() < slots;
        taken
    }

    /// A probe of the worker has ended. The next one is due an interval after this one began, or at once if this one
    /// took longer.
    pub fn ended(&mut self, worker: Uuid, now: Moment, dice: f64) {
        if let Some(entry) = self.workers.get_mut(&worker)
            && let Probe::UnderWay { began } = entry.probe
        {
            let pause = entry.interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * dice);
            let due = (began + pause).max(now);
            entry.probe = Probe::Waits { due, is_first: false };
            self.queue.insert((due, worker));
        }
    }

    /// The process slept, and many probes are overdue: they keep their order and begin one [`FIRST_GAP`] after another.
    fn spread_after_a_pause(&mut self, now: Moment) {
        let overdue: Vec<_> = self.queue.range(..=(now, Uuid::max())).copied().collect();
        let mut place = Duration::ZERO;
        for (due, worker) in overdue {
            if let Some(Entry { interval, probe: Probe::Waits { due: kept, .. } }) = self.workers.get_mut(&worker) {
                *kept = now + place.min(*interval);
                self.queue.remove(&(due, worker));
                self.queue.insert((*kept, worker));
                place += FIRST_GAP;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn worker(n: u32) -> Uuid {
        Uuid::from_u128(n.into())
    }

    fn workers(count: u32, interval: Duration) -> Vec<(Uuid, Duration)> {
        (0..count).map(|n| (worker(n), interval)).collect()
    }

    /// Numbers from 0 to 1, evenly spread and the same each time.
    fn dice() -> impl FnMut() -> f64 {
        let mut last = 0.0_f64;
        move || {
            last = (last + 0.618_033_988_75).fract();
            last
        }
    }

    /// Plays results, `+` and `-`, on a worker that was `before`.
    fn play(before: Health, results: &str, thresholds: &Thresholds) -> Health {
        let mut counts = Counts::default();
        results.chars().fold(before, |health, result| {
            counts.note(result == '+');
            counts.health(health, thresholds)
        })
    }

    #[test]
    fn health_follows_the_results_in_a_row() {
        use Health::{Draining, Failed, NotReady, Pending, Ready};
        let thresholds = Thresholds { ready_after: 2, fail_after: 3, give_up_after: 5 };
        for (before, results, after) in [
            // Ready after two successes in a row, from anywhere.
            (Pending, "+", Pending),
            (Pending, "+-+", NotReady),
            (Pending, "++", Ready),
            (NotReady, "+", NotReady),
            (NotReady, "++", Ready),
            (Failed, "+", Failed),
            (Failed, "-----++", Ready),
            // Not ready after three failures in a row.
            (Pending, "-", NotReady),
            (Pending, "---", NotReady),
            (Ready, "--", Ready),
            (Ready, "--+--", Ready),
            (Ready, "---", NotReady),
            (Ready, "---+", NotReady),
            (Ready, "---++", Ready),
            // Failed after five.
            (Ready, "----", NotReady),
            (Ready, "-----", Failed),
            (NotReady, "----", NotReady),
            (NotReady, "-----", Failed),
            (Pending, "-----", Failed),
            (Pending, "----+-----", Failed),
            // A new owner of a failed worker has counted nothing yet.
            (Failed, "", Failed),
            (Failed, "---", Failed),
            // A probe never ends a drain.
            (Draining, "+++++", Draining),
            (Draining, "----------", Draining),
        ] {
            assert_eq!(play(before, results, &thresholds), after, "{before} {results}");
        }
    }

    #[test]
    fn counts_that_contradict_each_other_still_decide() {
        let none = Thresholds { ready_after: 0, fail_after: 0, give_up_after: 0 };
        assert_eq!(Counts::default().health(Health::Pending, &none), Health::Pending, "nothing is known yet");
        assert_eq!(play(Health::Pending, "+", &none), Health::Ready);
        assert_eq!(play(Health::Ready, "-", &none), Health::Failed);
        let early = Thresholds { ready_after: 1, fail_after: 5, give_up_after: 2 };
        assert_eq!(play(Health::Ready, "--", &early), Health::Failed);
        let mut counts = Counts { successes: 0, failures: u32::MAX };
        counts.note(false);
        assert_eq!(counts.failures(), u32::MAX);
    }

    #[test]
    fn the_defaults_are_those_of_kubernetes() {
        let Thresholds { ready_after, fail_after, give_up_after } = Thresholds::default();
        assert_eq!((ready_after, fail_after, give_up_after), (1, 3, 30));
    }

    #[test]
    fn ten_thousand_workers_that_come_at_once_are_first_probed_over_ten_seconds() {
        let mut schedule = Schedule::default();
        schedule.add(&workers(10_000, SECOND * 10), SECOND, dice());
        for second in 0..10 {
            let began = schedule.take(SECOND * (second + 2), usize::MAX).len();
            assert!((990..=1010).contains(&began), "{began} began in second {second}");
        }
        assert_eq!((schedule.due(), schedule.first), (None, 0), "each has begun");
    }

    #[test]
    fn workers_that_come_one_after_another_make_no_burst() {
        let mut schedule = Schedule::default();
        let mut dice = dice();
        for (n, one) in workers(10_000, SECOND * 10).into_iter().enumerate() {
            // A thousand changes of the registry in each millisecond.
            let now = SECOND + MS * u32::try_from(n).unwrap() / 1000;
            schedule.add(&[one], now, &mut dice);
        }
        let mut most = 0;
        for tenth in 0..110 {
            most = most.max(schedule.take(SECOND + MS * 100 * tenth, usize::MAX).len());
        }
        assert!(most < 600 && schedule.due().is_none(), "{most} began within 100 ms");
    }

    #[test]
    fn a_worker_that_comes_alone_is_probed_at_once() {
        for (interval, within) in [(SECOND * 10, MS * 100), (MS * 50, MS * 5), (MS, MS), (SECOND * 3600, MS * 100)] {
            for dice in [0.0, 0.5, 1.0] {
                let mut schedule = Schedule::default();
                schedule.add(&[(worker(1), interval)], SECOND, || dice);
                let due = schedule.due().unwrap();
                assert!(due >= SECOND && due <= SECOND + within, "{interval:?}, {dice}: {due:?}");
            }
        }
    }

    #[test]
    fn the_next_probe_is_due_an_interval_after_the_last_one_began_with_jitter() {
        for (dice, took, pause) in [
            (0.0, 50, 9000),
            (0.5, 50, 10_000),
            (1.0, 50, 11_000),
            // A probe that took longer than the interval: the next one follows at once, and no others.
            (0.0, 25_000, 25_000),
        ] {
            let mut schedule = Schedule::default();
            schedule.add(&[(worker(1), SECOND * 10)], SECOND, || 0.0);
            assert_eq!(schedule.take(SECOND, 8), [worker(1)]);
            assert_eq!((schedule.due(), schedule.take(SECOND * 60, 8)), (None, vec![]), "one probe at a time");
            schedule.ended(worker(1), SECOND + MS * took, dice);
            let due = schedule.due().unwrap() - SECOND;
            assert!(due.abs_diff(MS * pause) < MS, "{dice}, {took} ms: {due:?}");
        }
    }

    #[test]
    fn with_few_slots_the_longest_overdue_begin_first_and_each_has_its_turn() {
        let mut schedule = Schedule::default();
        for n in [3, 1, 2] {
            schedule.add(&[(worker(n), SECOND * 10)], SECOND * n, || 0.0);
        }
        let mut take = |now, slots| schedule.take(now, slots);
        assert!(take(SECOND * 2, 0).is_empty());
        assert_eq!(take(SECOND * 3, 2), [worker(1), worker(2)]);
        assert_eq!(take(SECOND * 3, 2), [worker(3)]);
        // Many more workers than slots: nobody is probed twice before all others.
        let mut schedule = Schedule::default();
        schedule.add(&workers(50, SECOND), SECOND, dice());
        let mut seen = Vec::new();
        for round in 0..100 {
            let now = SECOND * 2 + MS * 500 * round;
            for worker in schedule.take(now, 2) {
                seen.push(worker);
                schedule.ended(worker, now + MS * 400, 0.5);
            }
        }
        for turn in seen.chunks(50) {
            assert_eq!(turn.iter().collect::<BTreeSet<_>>().len(), turn.len());
        }
        assert_eq!(seen.len(), 200);
    }

    #[test]
    fn a_process_that_slept_probes_each_worker_once_and_not_in_one_burst() {
        let mut schedule = Schedule::default();
        schedule.add(&workers(1000, SECOND * 10), SECOND, dice());
        for worker in schedule.take(SECOND * 2, usize::MAX) {
            schedule.ended(worker, SECOND * 2, 0.5);
        }
        // An hour passes, 360 intervals.
        let woke = SECOND * 3600;
        let mut seen = BTreeSet::new();
        for tick in 0..=10 {
            let began = schedule.take(woke + MS * 100 * tick, usize::MAX);
            assert!(began.len() <= 101, "{} began in tick {tick}", began.len());
            for worker in began {
                assert!(seen.insert(worker), "{worker} was probed twice");
                schedule.ended(worker, woke + MS * 100 * tick, 0.5);
            }
        }
        assert_eq!(seen.len(), 1000);
        assert!(schedule.due().unwrap() > woke + SECOND * 9);
    }

    #[test]
    fn lack_of_slots_is_not_taken_for_a_pause() {
        let mut schedule = Schedule::default();
        schedule.add(&workers(100, SECOND * 10), SECOND, dice());
        let order: Vec<_> = schedule.queue.iter().map(|(_, worker)| *worker).collect();
        assert_eq!(schedule.take(SECOND * 2, 10), order[..10]);
        assert_eq!(schedule.take(SECOND * 30, 100), order[10..], "all begin, in their order");
    }

    #[test]
    fn a_worker_that_is_forgotten_is_not_probed_and_one_that_comes_again_is_new() {
        let mut schedule = Schedule::default();
        schedule.add(&workers(3, SECOND), SECOND, || 0.0);
        schedule.forget(worker(0));
        schedule.forget(worker(7));
        assert_eq!(schedule.take(SECOND * 5, 1), [worker(1)]);
        schedule.forget(worker(1));
        schedule.ended(worker(1), SECOND * 5, 0.5);
        assert_eq!(schedule.take(SECOND * 9, 8), [worker(2)]);
        assert_eq!((schedule.due(), schedule.first), (None, 0));
        schedule.add(&[(worker(1), SECOND)], SECOND * 9, || 0.0);
        assert_eq!(schedule.due(), Some(SECOND * 9));
    }

    #[test]
    fn a_worker_that_is_known_keeps_its_turn_and_a_shorter_interval_hastens_it() {
        let mut schedule = Schedule::default();
        schedule.add(&[(worker(1), SECOND * 10)], SECOND, || 0.0);
        schedule.take(SECOND, 1);
        schedule.add(&[(worker(1), SECOND * 20)], SECOND, || 0.5);
        schedule.ended(worker(1), SECOND, 0.5);
        assert_eq!(schedule.due(), Some(SECOND * 21), "the interval changed while it was under way");
        schedule.add(&[(worker(1), SECOND * 20)], SECOND * 2, || 0.0);
        assert_eq!(schedule.due(), Some(SECOND * 21));
        schedule.add(&[(worker(1), SECOND * 4)], SECOND * 2, || 0.5);
        assert_eq!(schedule.due(), Some(SECOND * 4));
        schedule.add(&[(worker(1), SECOND * 60)], SECOND * 2, || 0.5);
        assert_eq!(schedule.due(), Some(SECOND * 4));
    }
}
