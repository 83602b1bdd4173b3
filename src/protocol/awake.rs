//! Which readers of streams are awake, and when a writer notifies the others (L11).
//!
//! A reader that has just got something of a run reads again soon, and needs no notice. A reader that has got nothing
//! for a while sleeps until a notice comes, or until it reads anyway. So a writer notifies only if the previous change
//! of the run is so old that readers may be asleep. All times are durations of one process's own clock (L8):
//!
//! ```text
//! writer   ├─ begins to store chunk 1 ──────── … ──────── has stored chunk 2      within SURE: no notice
//! server           └ chunk 1 is stored                 └ chunk 2 is stored
//! reader                └─ has read chunk 1 ────────────────────── reads for the last time, AWAKE later
//! ```
//!
//! Chunk 1 is stored before the reader has it and after the writer began. So the last read comes more than [`AWAKE`]
//! after chunk 1 was stored. Chunk 2 is stored less than [`SURE`] after chunk 1. So the last read finds chunk 2.
//!
//! * **Authority.** The rows. A notice only hastens a read, and nothing depends on it.
//! * **States.** [`Looks`]: the runs whose readers on this pod are awake. [`Teller`]: the runs that changed lately, the
//!   runs whose readers must still be told, and when this pod may notify again.
//! * **Bound.** A change is read within [`PACE`] or a quarter of the time since the change before it, or a notice is
//!   sent at most [`TELL_GAP`] later. A pod sends one notice per [`TELL_GAP`], and now and then a second one at once.
//! * **Failures.** After a notice that is lost, readers read when they do so anyway.
//! * **Not promised.** That a reader hears of a change in a statement that began before the reader registered. It reads
//!   again for [`AWAKE`] after it has registered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Moment;
use crate::id::RunId;

/// How soon a reader that is awake reads again: 10 ms. A pod stores chunks every 16 ms, so a chunk waits for 5 ms on
/// average. A shorter time costs reads that find nothing, and a longer one delays chunks.
pub const PACE: Duration = Duration::from_millis(10);
/// For how long a reader stays awake after it has got something: 300 ms. A writer relies on half of it ([`SURE`]), so a
/// run with a chunk every 100 ms needs no notice. A longer time costs reads of streams that have paused; a shorter one costs notices.
pub const AWAKE: Duration = Duration::from_millis(300);
/// For how long after a change a writer may be sure that readers are awake: half of [`AWAKE`]. The other half is room
/// for clocks that run at different speeds. A shorter time costs notices that nobody needs.
pub const SURE: Duration = Duration::from_millis(150);
/// The average time between two notices of a pod, at the least: 300 ms. Two may follow each other at once, because several runs often
/// begin together and their first chunks need two statements. So a pod sends at most five within a second. A NOTIFY
/// delays the commits of all other sessions for a moment, and wakes every listener of the database. A longer gap delays
/// the first chunk after a pause, if the pod has many such runs.
pub const TELL_GAP: Duration = Duration::from_millis(300);

/// The runs whose readers on this pod are awake, and when the pod reads for them next.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    runs: BTreeMap<RunId, Look>,
    /// No read is due before this moment.
    opens: Moment,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    /// When a read that found something had ended.
    heard: Moment,
    next: Moment,
}

impl Looks {
    /// The pod has got something of this run by now.
    pub fn note_news(&mut self, run: RunId, now: Moment) {
        self.runs.insert(run, Look { heard: now, next: now + PACE });
    }

    /// The run has ended, or has no reader any more.
    pub fn forget(&mut self, run: RunId) {
        self.runs.remove(&run);
    }

    /// A read that began at `began` has ended. The next one is due after as long a pause at the earliest, so that a slow
    /// server has time for others.
    pub fn note_read(&mut self, began: Moment, ended: Moment) {
        self.opens = ended + ended.saturating_sub(began);
    }

    /// Whether another read for this run is due by itself.
    #[must_use]
    pub fn is_awake(&self, run: RunId) -> bool {
        self.runs.contains_key(&run)
    }

    /// When the next read is due. `None`: all readers sleep.
    #[must_use]
    pub fn due(&self) -> Option<Moment> {
        self.runs.values().map(|look| look.next.max(self.opens)).min()
    }

    /// If a read is due at `now`, the runs to read for: all that are due within [`PACE`], so that one statement reads
    /// for all of them. The read must begin after this call.
    pub fn take(&mut self, now: Moment) -> Vec<RunId> {
        if self.due().is_none_or(|due| now < due) {
            return Vec::new();
        }
        let taken: Vec<RunId> =
            self.runs.iter().filter(|(_, look)| look.next <= now + PACE).map(|(run, _)| *run).collect();
        for run in &taken {
            if let Some(look) = self.runs.get_mut(run) {
                let quiet = now.saturating_sub(look.heard);
                look.next = now + PACE.max(quiet / 4);
            }
        }
        // A run that was taken and got nothing for `AWAKE` falls asleep: this was its last read.
        self.runs.retain(|run, look| now.saturating_sub(look.heard) < AWAKE || taken.binary_search(run).is_err());
        taken
    }
}

/// Which notices a pod sends to the readers of the runs that it executes.
#[derive(Clone, Debug, Default)]
pub struct Teller {
    /// The runs that changed less than [`SURE`] ago, and when the statement that stored the change began.
    changed: BTreeMap<RunId, Moment>,
    /// The runs whose readers must be told, and were not told yet.
    pending: BTreeSet<RunId>,
    /// Until when the notices that were sent suffice: [`TELL_GAP`] for each.
    covered: Moment,
}

impl Teller {
    /// The runs whose readers a statement tells that begins at `began` and changes these runs. None while the notices
    /// that were sent suffice. [`Teller::answered`] must follow when the statement has succeeded.
    pub fn ask(&mut self, changes: impl Iterator<Item = RunId>, began: Moment) -> BTreeSet<RunId> {
        self.changed.retain(|_, before| began.saturating_sub(*before) < SURE);
        if began < self.opens() {
            return BTreeSet::new();
        }
        let asleep = changes.filter(|run| self.may_sleep(*run, began));
        self.pending.iter().copied().chain(asleep).collect()
    }

    /// A statement that asked for these runs has ended. `told`: it notified. Without readers it does not, and then the
    /// next notice need not wait.
    pub fn answered(&mut self, asked: &BTreeSet<RunId>, told: bool, ended: Moment) {
        self.pending.retain(|run| !asked.contains(run));
        if told {
            self.covered = self.covered.max(ended) + TELL_GAP;
        }
    }

    /// A change of the run is stored. Its statement, or an earlier try of it, began at `began`, and had ended at
    /// `ended`. `asked`: it told the readers, if there are some.
    pub fn note_changed(&mut self, run: RunId, began: Moment, ended: Moment, asked: bool) {
        if !asked && self.may_sleep(run, ended) {
            self.pending.insert(run);
        }
        self.changed.insert(run, began);
    }

    /// When a notice is due, although nothing changes. `None`: nobody must be told.
    #[must_use]
    pub fn due(&self) -> Option<Moment> {
        (!self.pending.is_empty()).then(|| self.opens())
    }

    fn opens(&self) -> Moment {
        self.covered.saturating_sub(TELL_GAP)
    }

    /// Whether the run's readers may be asleep when a change is stored by `now`.
    fn may_sleep(&self, run: RunId, now: Moment) -> bool {
        self.changed.get(&run).is_none_or(|before| now.saturating_sub(*before) >= SURE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn run(n: u128) -> RunId {
        uuid::Uuid::from_u128(n).into()
    }

    /// A statement that changes these runs, begins at `began` and has ended at `ended`. Returns whom it tells.
    fn store(teller: &mut Teller, runs: &[u128], (began, ended): (u32, u32), has_readers: bool) -> Vec<RunId> {
        let asked = teller.ask(runs.iter().map(|n| run(*n)), MS * began);
        teller.answered(&asked, has_readers && !asked.is_empty(), MS * ended);
        for n in runs {
            teller.note_changed(run(*n), MS * began, MS * ended, asked.contains(&run(*n)));
        }
        asked.into_iter().collect()
    }

    #[test]
    fn a_reader_that_got_something_reads_again_soon_and_then_more_rarely_until_it_sleeps() {
        let mut looks = Looks::default();
        assert_eq!((looks.due(), looks.take(MS * 7)), (None, vec![]));
        looks.note_news(run(1), MS * 1000);
        let mut reads = Vec::new();
        while let Some(due) = looks.due() {
            assert!(looks.is_awake(run(1)) && looks.take(due - MS).is_empty());
            assert_eq!(looks.take(due), [run(1)]);
            reads.push((due - MS * 1000).as_millis());
        }
        assert_eq!(reads, [10, 20, 30, 40, 50, 62, 78, 97, 122, 152, 190, 238, 298, 372]);
        assert!(!looks.is_awake(run(1)));
    }

    #[test]
    fn runs_are_read_for_together_and_news_of_one_wake_no_other() {
        let mut looks = Looks::default();
        looks.note_news(run(1), MS * 1000);
        looks.note_news(run(2), MS * 1008);
        assert_eq!(looks.take(MS * 1010), [run(1), run(2)]);
        assert_eq!(looks.due(), Some(MS * 1020));
        looks.note_news(run(2), MS * 1200);
        // The process stood still. This read is the last one for the run that was quiet.
        assert_eq!(looks.take(MS * 1400), [run(1), run(2)]);
        assert_eq!((looks.is_awake(run(1)), looks.is_awake(run(2))), (false, true));
        // The read was slow.
        looks.note_read(MS * 1400, MS * 1450);
        assert_eq!(looks.due(), Some(MS * 1500));
        looks.forget(run(2));
        assert_eq!(looks.due(), None);
    }

    #[test]
    fn readers_are_told_of_a_first_chunk_and_of_one_after_a_pause_and_of_no_other() {
        let mut teller = Teller::default();
        // Statements with a chunk of run 1: when they begin and have ended, and whether they tell.
        for (at, tells) in [
            ((1000, 1005), true),
            ((1050, 1055), false),
            ((1199, 1199), false),
            // The statement ends too late to be sure. The readers are told with the next one.
            ((1340, 1360), false),
            ((1370, 1371), true),
            ((1400, 1401), false),
        ] {
            assert_eq!(!store(&mut teller, &[1], at, true).is_empty(), tells, "{at:?}");
        }
        assert_eq!(teller.due(), None);
        // Of run 2 nothing was stored before. The second notice follows at once, and the third does not.
        assert_eq!(store(&mut teller, &[1, 2], (1410, 1411), true), [run(2)]);
        assert_eq!(store(&mut teller, &[1, 3], (1420, 1421), true), []);
        assert_eq!(teller.due(), Some(MS * 1671));
        assert_eq!(store(&mut teller, &[1], (1560, 1561), true), []);
        assert_eq!(store(&mut teller, &[1], (1690, 1691), true), [run(3)]);
        assert_eq!(store(&mut teller, &[1], (2900, 2901), true), [run(1)]);
    }

    #[test]
    fn a_run_without_readers_delays_no_other_and_is_not_told_later() {
        let mut teller = Teller::default();
        assert_eq!(store(&mut teller, &[1], (1000, 1001), false), [run(1)]);
        assert_eq!(teller.due(), None);
        assert_eq!(store(&mut teller, &[2], (1002, 1003), true), [run(2)]);
    }

    /// Numbers from 0 to `below`, the same for each seed.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, below: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % below
        }
    }

    /// How long a notice is on its way, and how long a read takes, at most.
    const NOTICE_MOST: u64 = 30;
    const READ_MOST: u64 = 40;
    /// How long a statement takes at most.
    const STORE_MOST: u64 = 800;

    /// A statement of the writer that has not ended.
    struct Statement {
        runs: Vec<RunId>,
        asked: BTreeSet<RunId>,
        began: u64,
        commits: u64,
        ends: u64,
    }

    /// Plays a writer and a reader of two runs for some seconds, millisecond by millisecond. Returns the longest time
    /// from a commit to the snapshot of the read that found it, and when the notices were sent.
    fn play(seed: u64) -> (u64, Vec<u64>) {
        let mut dice = Dice(seed);
        let pauses = [30, 100, 200, 400, 1500][usize::try_from(dice.below(5)).unwrap()];
        // The clocks of the two have nothing to do with each other.
        let (writer, reader) = (dice.below(1 << 40), dice.below(1 << 40));
        let at = |origin: u64, t: u64| Duration::from_millis(origin + t);
        let (mut teller, mut looks) = (Teller::default(), Looks::default());
        let (mut notices, mut longest) = (Vec::new(), 0);
        let mut statement: Option<Statement> = None;
        let mut next = [dice.below(100), dice.below(100)];
        // What is committed and not read yet: the run, and when.
        let mut unread: Vec<(RunId, u64)> = Vec::new();
        let mut heard: Vec<(RunId, u64)> = Vec::new();
        // The read that is under way: what it found, when it began, and when it ends.
        let mut reading: Option<(Vec<RunId>, u64, u64)> = None;
        let mut wanted: BTreeSet<RunId> = BTreeSet::new();
        for t in 0..6000 {
            if let Some(under_way) = &statement {
                if under_way.commits == t {
                    unread.extend(under_way.runs.iter().map(|run| (*run, t)));
                    let arrives = t + dice.below(NOTICE_MOST);
                    heard.extend(under_way.asked.iter().map(|run| (*run, arrives)));
                    notices.extend((!under_way.asked.is_empty()).then_some(t));
                }
                if under_way.ends == t {
                    let Statement { runs, asked, began, .. } = statement.take().unwrap();
                    teller.answered(&asked, !asked.is_empty(), at(writer, t));
                    for run in runs {
                        teller.note_changed(run, at(writer, began), at(writer, t), asked.contains(&run));
                    }
                }
            }
            if statement.is_none() {
                let due: Vec<usize> = (0..2).filter(|n| next[*n] <= t && t < 4500).collect();
                let tells = teller.due().is_some_and(|due| due <= at(writer, t));
                if !due.is_empty() || tells {
                    let runs: Vec<RunId> = due.iter().map(|n| run(u128::try_from(*n).unwrap())).collect();
                    let asked = teller.ask(runs.iter().copied(), at(writer, t));
                    let slow = if dice.below(20) == 0 { STORE_MOST } else { 10 };
                    let commits = t + 1 + dice.below(slow / 2);
                    let ends = commits + 1 + dice.below(slow / 2 - 1);
                    statement = Some(Statement { runs, asked, began: t, commits, ends });
                    due.into_iter().for_each(|n| next[n] = t + 1 + dice.below(pauses));
                }
            }
            if let Some((found, began, ends)) = reading.clone()
                && ends == t
            {
                found.iter().for_each(|run| looks.note_news(*run, at(reader, t)));
                looks.note_read(at(reader, began), at(reader, t));
                reading = None;
            }
            wanted.extend(heard.iter().filter(|(_, arrives)| *arrives == t).map(|(run, _)| *run));
            if reading.is_none() {
                wanted.extend(looks.take(at(reader, t)));
                if !wanted.is_empty() {
                    // The snapshot may be younger than the begin of the read.
                    let found: Vec<RunId> =
                        unread.iter().map(|(run, _)| *run).filter(|run| wanted.contains(run)).collect();
                    let waited = unread.iter().filter(|(run, _)| wanted.contains(run)).map(|(_, since)| t - since);
                    longest = longest.max(waited.max().unwrap_or(0));
                    unread.retain(|(run, _)| !wanted.contains(run));
                    wanted.clear();
                    reading = Some((found, t, t + 1 + dice.below(READ_MOST)));
                }
            }
        }
        assert_eq!(unread, [], "seed {seed}: a change was neither found by a reader that was awake, nor told");
        (longest, notices)
    }

    #[test]
    fn whatever_the_schedule_each_change_is_found_awake_or_told_within_the_gap_and_notices_are_few() {
        let gap = u64::try_from(TELL_GAP.as_millis()).unwrap();
        for seed in 0..1000 {
            let (longest, notices) = play(seed);
            // A notice that is due waits for the statement that is under way, and goes with the next.
            let most = gap + 2 * STORE_MOST + NOTICE_MOST + 2 * READ_MOST;
            assert!(longest <= most, "seed {seed}: {longest} ms");
            let gaps = notices.windows(3).map(|three| three[2] - three[0]);
            assert!(gaps.min().is_none_or(|least| least >= gap), "seed {seed}: {notices:?}");
            let seconds = notices.windows(6).map(|six| six[5] - six[0]);
            assert!(seconds.min().is_none_or(|least| least >= 1000), "seed {seed}: {notices:?}");
        }
    }
}
