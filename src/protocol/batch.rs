//! How to retry a statement over many rows after some of the rows made it fail (L12).
//!
//! * **Too slow.** A batch that ran into a time limit is cut in half. So is every waiting batch that is longer than
//!   that half.
//! * **Refused.** The server refuses a batch because of a value in it. Such a batch is cut in half again and again,
//!   down to the one row at fault: the culprit.
//! * **Order.** The halves go behind the batches that were not tried yet, so that sound rows do not wait for the
//!   search.
//! * **Bound.** A pass tries only so many statements that fail. The next pass begins with the batch size at which this
//!   one stopped.

use std::collections::VecDeque;
use std::ops::Range;

/// How many statements of one pass may run into a time limit. Each costs as long as the limit. More: a pass takes long.
/// Fewer: more passes until the batches are small enough.
const SLOW_MOST: usize = 4;
/// How many statements of one pass may be refused. The search for one culprit among 500 rows takes at most 10 refusals,
/// each of them quick. So one pass finds several culprits, and still ends if every row is bad.
const REFUSED_MOST: usize = 64;

/// Why a statement over a batch failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The statement did not end in time.
    TooSlow,
    /// The server refused the statement because of a value or a row in it.
    Row,
    /// Anything else. Smaller batches would fail too.
    Other,
}

/// Sorts a failure by whether the statement `timed_out`, or else by the server's SQLSTATE (`None`: the server did not
/// answer).
#[must_use]
pub fn fault(timed_out: bool, sqlstate: Option<&str>) -> Fault {
    if timed_out {
        return Fault::TooSlow;
    }
    // Classes of SQLSTATE about a row: bad values, constraints, errors raised by a trigger, limits of one row, and rows
    // that the server itself cannot read.
    let of_a_row = ["21", "22", "23", "27", "2F", "38", "39", "44", "54", "P0", "XX"];
    match sqlstate.and_then(|code| code.get(..2)) {
        Some(class) if of_a_row.contains(&class) => Fault::Row,
        _ => Fault::Other,
    }
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The batch was cut in two. Go on with the next batch.
    Cut,
    /// This one row is at fault. Pass over it and go on.
    Culprit(usize),
    /// Smaller batches would not help, or enough has failed for one pass.
    GiveUp,
}

/// The batches of one pass over rows `0..count`.
#[derive(Clone, Debug)]
pub struct Batches {
    pending: VecDeque<Range<usize>>,
    size: usize,
    slow: usize,
    refused: usize,
}

impl Batches {
    /// Batches of at most `size` rows.
    #[must_use]
    pub fn new(count: usize, size: usize) -> Self {
        let size = size.max(1);
        let pending = (0..count).step_by(size).map(|from| from..(from + size).min(count)).collect();
        Self { pending, size, slow: 0, refused: 0 }
    }

    /// The next batch to try.
    pub fn next_batch(&mut self) -> Option<Range<usize>> {
        self.pending.pop_front()
    }

    /// Notes that `batch` failed, cuts it if that helps, and says what to do next.
    pub fn failed(&mut self, batch: &Range<usize>, fault: Fault) -> Verdict {
        let (failures, most) = match fault {
            Fault::Other => return Verdict::GiveUp,
            Fault::TooSlow => (&mut self.slow, SLOW_MOST),
            Fault::Row => (&mut self.refused, REFUSED_MOST),
        };
        *failures += 1;
        let too_many = *failures >= most;
        let half = batch.len().div_ceil(2).max(1);
        if fault == Fault::TooSlow {
            self.size = self.size.min(half);
        }
        if batch.len() <= 1 {
            return Verdict::Culprit(batch.start);
        }
        if too_many {
            return Verdict::GiveUp;
        }
        let middle = batch.start + half;
        let cut = std::mem::take(&mut self.pending).into_iter().chain([batch.start..middle, middle..batch.end]);
        let most = self.size;
        self.pending = cut
            .flat_map(|range| {
                let end = range.end;
                range.step_by(most).map(move |from| from..(from + most).min(end))
            })
            .collect();
        Verdict::Cut
    }

    /// How many rows the batches of the next pass have, at most `most`. If a batch of this pass was too slow: the size
    /// at which the pass ended. Otherwise: twice that size.
    #[must_use]
    pub fn size_of_next_pass(&self, most: usize) -> usize {
        if self.slow > 0 { self.size } else { self.size.saturating_mul(2).min(most) }
    }

    /// How many statements of this pass failed.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.slow + self.refused
    }

    /// The most rows of a batch now.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }
}

/// Groups rows, in their order, so that the sizes of a group sum to at most `most`. A larger row is a group of its own.
#[must_use]
pub fn by_bytes(sizes: &[i64], most: i64) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut sum = 0_i64;
    for (row, size) in sizes.iter().map(|size| (*size).max(0)).enumerate() {
        match groups.last_mut() {
            Some(group) if sum.saturating_add(size) <= most => group.end = row + 1,
            _ => {
                groups.push(row..row + 1);
                sum = 0;
            }
        }
        sum = sum.saturating_add(size);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a pass over `count` rows in which the batches fail for which `fails` returns a fault. Returns the rows that
    /// passed, the culprits, and the number of statements.
    fn run(
        count: usize,
        size: usize,
        fails: impl Fn(&Range<usize>) -> Option<Fault>,
    ) -> (Vec<usize>, Vec<usize>, usize) {
        let mut batches = Batches::new(count, size);
        let (mut passed, mut culprits, mut statements) = (Vec::new(), Vec::new(), 0);
        while let Some(batch) = batches.next_batch() {
            statements += 1;
            match fails(&batch) {
                None => passed.extend(batch),
                Some(fault) => match batches.failed(&batch, fault) {
                    Verdict::Cut => {}
                    Verdict::Culprit(row) => culprits.push(row),
                    Verdict::GiveUp => break,
                },
            }
        }
        (passed, culprits, statements)
    }

    #[test]
    fn l12_one_bad_row_among_500_is_found_and_all_others_pass() {
        for bad in [0, 1, 249, 250, 499] {
            let (mut passed, culprits, statements) = run(500, 500, |b| b.contains(&bad).then_some(Fault::Row));
            passed.sort_unstable();
            assert_eq!(culprits, [bad]);
            assert_eq!(passed, (0..500).filter(|row| *row != bad).collect::<Vec<_>>());
            assert!(statements <= 19, "{statements}");
        }
    }

    #[test]
    fn l12_sound_batches_come_before_the_search_goes_on() {
        let mut batches = Batches::new(9, 3);
        let first = batches.next_batch().expect("there are rows");
        assert_eq!(batches.failed(&first, Fault::Row), Verdict::Cut);
        let order: Vec<_> = std::iter::from_fn(|| batches.next_batch()).collect();
        assert_eq!(order, [3..6, 6..9, 0..2, 2..3]);
    }

    #[test]
    fn a_batch_that_timed_out_is_halved_and_so_are_the_others_and_the_next_pass() {
        let mut batches = Batches::new(100, 50);
        let first = batches.next_batch().expect("there are rows");
        assert_eq!(batches.failed(&first, Fault::TooSlow), Verdict::Cut);
        let order: Vec<_> = std::iter::from_fn(|| batches.next_batch()).collect();
        assert_eq!(order, [50..75, 75..100, 0..25, 25..50]);
        assert_eq!(batches.size_of_next_pass(500), 25);
        // It grows again where nothing is slow.
        assert_eq!(Batches::new(10, 25).size_of_next_pass(500), 50);
        assert_eq!(Batches::new(10, 300).size_of_next_pass(500), 500);
    }

    /// However few rows fit in the time limit, a few passes find that number.
    #[test]
    fn l12_a_link_on_which_7_rows_fit_takes_all_rows_in_a_few_passes() {
        let (mut left, mut size) = (500_usize, 500);
        for pass in 1.. {
            let mut batches = Batches::new(left, size);
            while let Some(batch) = batches.next_batch() {
                if batch.len() <= 7 {
                    left -= batch.len();
                } else if batches.failed(&batch, Fault::TooSlow) == Verdict::GiveUp {
                    break;
                }
            }
            size = batches.size_of_next_pass(500);
            assert!(pass < 20, "{left} are left after {pass} passes, with batches of {size}");
            if left == 0 {
                break;
            }
        }
    }

    #[test]
    fn what_is_about_no_row_is_not_searched_for_and_a_pass_fails_only_so_often() {
        let (passed, culprits, statements) = run(500, 500, |_| Some(Fault::Other));
        assert_eq!((passed.len(), culprits.len(), statements), (0, 0, 1));
        let (.., statements) = run(500, 500, |_| Some(Fault::TooSlow));
        assert_eq!(statements, SLOW_MOST);
        let (.., statements) = run(500, 500, |_| Some(Fault::Row));
        assert_eq!(statements, REFUSED_MOST);
    }

    #[test]
    fn groups_hold_only_so_many_bytes_but_for_a_row_that_is_larger() {
        assert_eq!(by_bytes(&[], 10), Vec::<Range<usize>>::new());
        assert_eq!(by_bytes(&[4, 6, 1, 99, 0, 10, 1], 10), [0..2, 2..3, 3..4, 4..6, 6..7]);
        assert_eq!(by_bytes(&[i64::MAX, i64::MAX, -5], 10), [0..1, 1..2, 2..3]);
    }

    #[test]
    fn a_failure_is_about_a_row_by_its_sqlstate() {
        for of_a_row in ["22003", "23505", "23514", "P0001", "XX001", "54000"] {
            assert_eq!(fault(false, Some(of_a_row)), Fault::Row, "{of_a_row}");
        }
        for other in ["42501", "40001", "53200", "57P01", "25006", "0A000", "08006"] {
            assert_eq!(fault(false, Some(other)), Fault::Other, "{other}");
        }
        assert_eq!(fault(false, None), Fault::Other);
        assert_eq!(fault(true, Some("57014")), Fault::TooSlow);
        assert_eq!(fault(true, None), Fault::TooSlow);
    }
}
