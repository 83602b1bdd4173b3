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
//! * **Bound.** A roster probe takes one statement per [`ROWS_MOST`] rows. It meets a full table at most seven times.
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

    /// The next statement. `None`: every row was probed or read.
    #[must_use]
    pub fn next(&self) -> Option<Portion> {
        let most = if self.probe { self.size } else { READ_MOST };
        self.left.last().map(|(from, upto)| Portion { from: *from, upto: *upto, most, probe: self.probe })
    }

    /// Notes that the statement returned rows with these keys, in order.
    pub fn returned(&mut self, keys: &[i64]) {
        let Some(portion) = self.next() else { return };
        if let (true, Some(first)) = (mem::take(&mut self.gave_up), keys.first()) {
            self.next_start = first.saturating_add(1);
        }
        let behind = keys.last().and_then(|last| last.checked_add(1)).filter(|next| *next <= portion.upto);
        match (behind, self.left.last_mut()) {
            (Some(next), Some(range)) if keys.len() >= portion.most => range.0 = next,
            _ => _ = self.left.pop(),
        }
    }

    /// Notes that the statement met a full lock table and probed nothing.
    pub fn met_a_full_table(&mut self) {
        self.was_full = true;
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
    use super::*;

    /// Probes rows with these keys on a server that has room for `room` probes at a time. Returns the keys that were
    /// probed, the keys that were only read, the number of statements, and the pace to remember.
    fn probe(pace: Pace, keys: &[i64], room: usize) -> (Vec<i64>, Vec<i64>, usize, Pace) {
        let (mut probed, mut read, mut statements) = (Vec::new(), Vec::new(), 0);
        let mut portions = Portions::begin(pace);
        while let Some(Portion { from, upto, most, probe }) = portions.next() {
            statements += 1;
            assert!(statements < 10_000, "it does not end: {portions:?}");
            let mut rows: Vec<_> = keys.iter().copied().filter(|k| (from..=upto).contains(k)).collect();
            rows.sort_unstable();
            rows.truncate(most);
            if probe && rows.len() > room {
                portions.met_a_full_table();
                continue;
            }
            if probe { &mut probed } else { &mut read }.extend(&rows);
            portions.returned(&rows);
        }
        (probed, read, statements, portions.pace())
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
        assert_eq!(Portions::begin(Pace::default()).next(), Some(Pace::default().whole()));
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
        assert!(statements <= 7 + 5000 / READ_MOST + 2, "{statements}");
        assert_eq!(pace, Pace { size: 1, start: -299 });
        // One row fails every time, as far as this probe can tell. The following probes reach the other rows.
        let begun: Vec<_> = (0..3)
            .scan(pace, |pace, _| {
                let portions = Portions::begin(*pace);
                *pace = probe(*pace, &all, 0).3;
                portions.next().map(|portion| portion.from)
            })
            .collect();
        assert_eq!(begun, [-299, -292, -285]);
    }
}
