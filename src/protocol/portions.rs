//! How a roster probe is cut into portions.
//!
//! A probe that gets the lock of a dead pod takes an entry of the server's lock table until its transaction ends. That
//! table has a fixed size for all sessions of the server. One statement over thousands of dead rows would fill it: that
//! statement fails each time, and so do the service's own statements. So each statement of a roster probe probes a
//! bounded number of rows, in the order of the lock keys. It gives its locks back before the next statement.
//!
//! * **States.** A roster probe goes once round the ring of keys, portion by portion. A portion that meets a full lock
//!   table is halved. If not even one row can be probed, the rest is read without probing: those rows are unknown
//!   (L10).
//! * **Together.** Of a roster that is known, several portions are sent at a time, so that they take one round trip. They
//!   are cut at keys that an earlier probe showed. Each is a statement of its own, and the server makes them one after
//!   another, so no more locks are taken at a time.
//! * **Bound.** A roster probe takes about one statement per [`ROWS_MOST`] rows. It meets a full table at most seven
//!   times, and once more for each statement that was sent together with the first one that met it.
//! * **Progress.** After a roster probe that could not probe every row, the next one begins behind the row at which
//!   this one gave up. The size of a portion doubles after each roster probe that met no full table.

use std::mem;

/// Rows that one statement probes: 64, so at most 128 entries of the lock table (liveness and witness). That is what
/// two connections may use on average with the default `max_locks_per_transaction` of 64. It is little of the 8,000
/// entries that the server's defaults provide. More rows disturb the service if the table is small. Fewer rows cost
/// more round trips in a fleet of a thousand pods.
pub const ROWS_MOST: usize = 64;
/// Rows that one statement reads without probing: 1,024. It takes no locks, so only the size of the reply counts. More:
/// larger replies. Fewer: more round trips where thousands of rows are only read.
const READ_MOST: usize = 16 * ROWS_MOST;
/// Statements that are sent together: 8. That is one round trip for 450 rows or so. More keep the other work of the
/// session waiting for longer; fewer take more round trips in a fleet of several hundred pods.
pub const TOGETHER_MOST: usize = 8;

/// What an observer remembers from one roster probe to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How many rows a portion has.
    size: usize,
    /// The lock key at which the next roster probe begins.
    start: i64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { size: ROWS_MOST, start: i64::MIN }
    }
}

impl Pace {
    /// How many rows a portion has now.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    /// The same pace for a roster probe that begins at `key`.
    #[must_use]
    pub const fn from(self, key: i64) -> Self {
        Self { start: key, ..self }
    }

    /// The portion that covers a roster of at most [`Pace::size`] rows.
    #[must_use]
    pub const fn whole(&self) -> Portion {
        Portion { from: i64::MIN, upto: i64::MAX, most: self.size, probe: true }
    }
}

/// One statement of a roster probe: the first `most` rows with lock keys in this range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portion {
    /// The lowest key.
    pub from: i64,
    /// The highest key.
    pub upto: i64,
    /// How many rows at most.
    pub most: usize,
    /// Whether the statement probes the locks of the rows, or only reads the rows.
    pub probe: bool,
}

/// A roster probe in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portions {
    size: usize,
    /// The key ranges that are left, the current one last. The keys before the start come at the end of the probe.
    left: Vec<(i64, i64)>,
    probe: bool,
    was_full: bool,
    gave_up: bool,
    next_start: i64,
}

impl Portions {
    /// Begins a roster probe.
    #[must_use]
    pub fn begin(pace: Pace) -> Self {
        let mut left = vec![(pace.start, i64::MAX)];
        if let Some(before) = pace.start.checked_sub(1) {
            left.insert(0, (i64::MIN, before));
        }
        Self { size: pace.size, left, probe: true, was_full: false, gave_up: false, next_start: i64::MIN }
    }

    /// Cuts the rest of the roster at the keys of rows that are known, in their order. A portion is cut a little short of
    /// its size, because there may be new rows.
    pub fn cut(&mut self, known: &[i64]) {
        let rows = (self.size - self.size / 8).max(1);
        let mut left = Vec::new();
        for (from, upto) in mem::take(&mut self.left) {
            let there = known.iter().copied().filter(|key| (from..=upto).contains(key)).collect::<Vec<_>>();
            let mut begins: Vec<_> = there.chunks(rows).skip(1).filter_map(|chunk| chunk.first().copied()).collect();
            begins.insert(0, from);
            let ends = begins.iter().skip(1).map(|next| next - 1).chain([upto]);
            let ranges: Vec<_> = begins.iter().copied().zip(ends).collect();
            // The current range is the last one.
            left.extend(ranges.into_iter().rev());
        }
        self.left = left;
    }

    /// The next statements, to be sent together. None: every row was probed or read.
    #[must_use]
    pub fn next(&self) -> Vec<Portion> {
        let most = if self.probe { self.size } else { READ_MOST };
        // Where the lock table is full, one statement at a time finds out how many rows there is room for.
        let together = if self.was_full { 1 } else { TOGETHER_MOST };
        let ranges = self.left.iter().rev().take(together);
        ranges.map(|(from, upto)| Portion { from: *from, upto: *upto, most, probe: self.probe }).collect()
    }

    /// Notes that this statement returned rows with these keys, in order.
    pub fn returned(&mut self, portion: &Portion, keys: &[i64]) {
        if let (true, Some(first)) = (mem::take(&mut self.gave_up), keys.first()) {
            self.next_start = first.saturating_add(1);
        }
        let Some(at) = self.left.iter().rposition(|range| *range == (portion.from, portion.upto)) else { return };
        let behind = keys.last().and_then(|last| last.checked_add(1)).filter(|next| *next <= portion.upto);
        match behind {
            Some(next) if keys.len() >= portion.most => self.left[at].0 = next,
            _ => _ = self.left.remove(at),
        }
    }

    /// Notes that this statement met a full lock table and probed nothing.
    pub fn met_a_full_table(&mut self, portion: &Portion) {
        self.was_full = true;
        // Another one of the statements that were sent together has met it already.
        if portion.most > self.size {
            return;
        }
        if self.size > 1 {
            self.size /= 2;
        } else {
            (self.probe, self.gave_up) = (false, true);
        }
    }

    /// What to remember after the roster probe.
    #[must_use]
    pub fn pace(&self) -> Pace {
        let size = if self.was_full { self.size } else { (self.size * 2).min(ROWS_MOST) };
        Pace { size, start: self.next_start }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Probes rows with these keys on a server that has room for `room` probes at a time. Returns the keys that were
    /// probed, the keys that were only read, the number of statements, and the pace to remember.
    fn probe(pace: Pace, keys: &[i64], room: usize) -> (Vec<i64>, Vec<i64>, usize, Pace) {
        let (probed, read, [statements, _], pace) = probe_known(pace, keys, &[], room);
        (probed, read, statements, pace)
    }

    /// The same, where rows with the keys `known` are known. Returns also how many round trips were made.
    fn probe_known(pace: Pace, keys: &[i64], known: &[i64], room: usize) -> (Vec<i64>, Vec<i64>, [usize; 2], Pace) {
        let (mut probed, mut read, mut statements, mut trips) = (Vec::new(), Vec::new(), 0, 0);
        let mut portions = Portions::begin(pace);
        portions.cut(known);
        loop {
            let together = portions.next();
            if together.is_empty() {
                return (probed, read, [statements, trips], portions.pace());
            }
            trips += 1;
            for portion in &together {
                statements += 1;
                assert!(statements < 10_000, "it does not end: {portions:?}");
                let in_range = |key: &i64| (portion.from..=portion.upto).contains(key);
                let mut rows: Vec<_> = keys.iter().copied().filter(in_range).collect();
                rows.sort_unstable();
                rows.truncate(portion.most);
                if portion.probe && rows.len() > room {
                    portions.met_a_full_table(portion);
                    continue;
                }
                if portion.probe { &mut probed } else { &mut read }.extend(&rows);
                portions.returned(portion, &rows);
            }
        }
    }

    fn keys(n: i64) -> Vec<i64> {
        (0..n).map(|i| i * 7 - 300).chain([i64::MIN, i64::MAX]).collect()
    }

    fn sorted(mut keys: Vec<i64>) -> Vec<i64> {
        keys.sort_unstable();
        keys
    }

    #[test]
    fn each_row_is_probed_once_wherever_a_look_begins() {
        for n in [0, 1, 61, 62, 63, 500] {
            for start in [i64::MIN, i64::MIN + 1, -300, -1, 0, 7, i64::MAX] {
                let (probed, read, statements, pace) = probe(Pace::default().from(start), &keys(n), 1000);
                assert_eq!(
                    probed.first().copied(),
                    keys(n).into_iter().filter(|k| *k >= start).min(),
                    "begins at {start}"
                );
                assert_eq!((sorted(probed), read), (sorted(keys(n)), vec![]), "{n} rows from {start}");
                assert!(statements <= keys(n).len() / ROWS_MOST + 2, "{statements} statements for {n} rows");
                assert_eq!(pace, Pace::default());
            }
        }
    }

    #[test]
    fn a_small_roster_takes_one_statement() {
        assert_eq!(probe(Pace::default(), &keys(61), 1000).2, 1);
        assert_eq!(Portions::begin(Pace::default()).next(), [Pace::default().whole()]);
    }

    /// Two hundred pods, of which one has joined and one has left since the last probe.
    #[test]
    fn a_roster_that_is_known_takes_one_round_trip() {
        let all = keys(199);
        let known: Vec<_> = sorted(all.clone()).into_iter().filter(|key| *key != 0).chain([i64::MAX - 1]).collect();
        for start in [i64::MIN, -300, 7, 400, i64::MAX] {
            let (probed, read, [statements, trips], _) =
                probe_known(Pace::default().from(start), &all, &sorted(known.clone()), 1000);
            assert_eq!((sorted(probed), read), (sorted(all.clone()), vec![]), "from {start}");
            assert!(statements <= 6 && trips == 1, "{statements} statements in {trips} round trips from {start}");
        }
    }

    /// Of the statements that were sent together, only the first that meets the full table halves the portions.
    #[test]
    fn statements_that_meet_a_full_table_together_are_repeated_with_half_of_the_rows() {
        let all = keys(500);
        let (probed, read, [statements, _], pace) = probe_known(Pace::default(), &all, &sorted(all.clone()), 40);
        assert_eq!((sorted(probed), read, pace.size()), (sorted(all), vec![], 32));
        assert!(statements < 8 + 502 / 32 + 12, "{statements}");
    }

    proptest! {
        /// Whatever was known, each row is probed or read once.
        #[test]
        fn each_row_is_reached_once_whatever_was_known(
            there in proptest::collection::btree_set(any::<i64>(), 0..300),
            known in proptest::collection::btree_set(any::<i64>(), 0..300),
            still in any::<u8>(),
            start in any::<i64>(),
            room in 0_usize..80,
        ) {
            let all: Vec<i64> = there.iter().copied().collect();
            let mut known: Vec<i64> = known.into_iter().chain(all.iter().copied().take(usize::from(still))).collect();
            known.sort_unstable();
            let (probed, read, _, _) = probe_known(Pace::default().from(start), &all, &known, room);
            prop_assert_eq!(sorted([probed, read].concat()), all);
        }
    }

    #[test]
    fn a_portion_that_meets_a_full_table_is_halved_and_all_rows_are_reached_all_the_same() {
        let (probed, read, _, pace) = probe(Pace::default(), &keys(500), 20);
        assert_eq!((sorted(probed), read), (sorted(keys(500)), vec![]));
        assert_eq!(pace.size(), 16);
        // The portion grows again with each roster probe once there is room.
        let pace = (0..2).fold(pace, |pace, _| probe(pace, &keys(500), 1000).3);
        assert_eq!(pace, Pace::default());
    }

    /// L10: rows that could not be probed are reported as such, and the roster probe ends.
    #[test]
    fn where_nothing_can_be_probed_the_rest_is_read_and_the_next_probe_begins_behind() {
        let all = keys(5000);
        let (probed, read, statements, pace) = probe(Pace::default().from(-300), &all, 0);
        assert_eq!((probed, sorted(read)), (vec![], sorted(all.clone())));
        // Seven failures, and that of the rows before the start, which was sent with the first.
        assert!(statements <= 8 + 5000 / READ_MOST + 2, "{statements}");
        assert_eq!(pace, Pace { size: 1, start: -299 });
        // One row fails every time, as far as this probe can tell. The following probes reach the other rows.
        let begun: Vec<_> = (0..3)
            .scan(pace, |pace, _| {
                let portions = Portions::begin(*pace);
                *pace = probe(*pace, &all, 0).3;
                portions.next().first().map(|portion| portion.from)
            })
            .collect();
        assert_eq!(begun, [-299, -292, -285]);
    }
}
