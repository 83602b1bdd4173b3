//! Runs that failed on a pod and of which its event log does not tell yet.
//!
//! * **Authority.** The rows of the runs: each says why its run failed. The event is for people who follow the log.
//! * **Bound.** One entry per kind, and a pod runs the kinds that it has a handler for. A pod appends at most once in a
//!   [`GAP`], however many runs fail, because appends of the whole fleet wait for one lock.
//! * **Failures.** What was surely not written is kept for the next time. What may have been written is not repeated: an
//!   event may be missing, but none counts a run twice.
//! * **Not promised.** That an event tells of a run whose pod was killed before the next append.

use std::borrow::Cow;
use std::time::Duration;

use crate::id::RunId;

/// How long a pod waits between two appends about failed runs. The first failure after a quiet time is appended at once.
///
/// Longer, and people who follow the log see a failure late. Shorter, and a large fleet whose runs all fail is busy with
/// its log: a hundred pods append ten times a second with this.
pub const GAP: Duration = Duration::from_secs(10);
/// The most kinds that one append tells of; the database takes 32. More kinds wait for the next append.
pub const KINDS_AT_ONCE: usize = 32;
/// How many characters of an error a log line, an event, a list and the end of a stream show. The run's row has all
/// of it.
pub const ERROR_CHARS: usize = 1000;

/// What is to be told of the failed runs of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Their kind.
    pub kind: String,
    /// How many there are.
    pub runs: i64,
    /// The last of them.
    pub run: RunId,
    /// The beginning of its error.
    pub error: String,
}

/// The failures of which the log does not tell yet, the kind that waits longest first.
#[derive(Debug, Default)]
pub struct Tally(Vec<Failed>);

impl Tally {
    /// A run failed.
    pub fn note(&mut self, kind: &str, run: RunId, error: &str) {
        let error = beginning(error).into_owned();
        match self.0.iter_mut().find(|f| f.kind == kind) {
            Some(failed) => {
                failed.runs = failed.runs.saturating_add(1);
                (failed.run, failed.error) = (run, error);
            }
            None => self.0.push(Failed { kind: kind.to_owned(), runs: 1, run, error }),
        }
    }

    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes what one append tells of.
    pub fn take(&mut self) -> Vec<Failed> {
        let count = self.0.len().min(KINDS_AT_ONCE);
        self.0.drain(..count).collect()
    }

    /// Puts back what was taken and surely not written. What failed since then stays the last of its kind.
    pub fn put_back(&mut self, taken: Vec<Failed>) {
        let since = std::mem::replace(&mut self.0, taken);
        for failed in since {
            match self.0.iter_mut().find(|f| f.kind == failed.kind) {
                Some(before) => {
                    let runs = before.runs.saturating_add(failed.runs);
                    *before = Failed { runs, ..failed };
                }
                None => self.0.push(failed),
            }
        }
    }
}

/// An error as far as it is shown where there is little room.
#[must_use]
pub fn beginning(error: &str) -> Cow<'_, str> {
    match error.char_indices().nth(ERROR_CHARS) {
        Some((end, _)) => Cow::Owned(format!("{}…", &error[..end])),
        None => Cow::Borrowed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kind: &str, runs: i64, run: RunId, error: &str) -> Failed {
        Failed { kind: kind.to_owned(), runs, run, error: error.to_owned() }
    }

    #[test]
    fn failures_of_a_kind_are_one_entry_that_counts_them_and_bears_the_last() {
        let runs: [RunId; 3] = std::array::from_fn(|_| RunId::generate());
        let mut tally = Tally::default();
        assert!(tally.is_empty());
        tally.note("a", runs[0], "first");
        tally.note("b", runs[1], "other");
        tally.note("a", runs[2], "last");
        assert_eq!(tally.take(), [failed("a", 2, runs[2], "last"), failed("b", 1, runs[1], "other")]);
        assert!(tally.is_empty() && tally.take().is_empty());
    }

    #[test]
    fn what_was_not_written_is_counted_with_what_failed_since() {
        let runs: [RunId; 3] = std::array::from_fn(|_| RunId::generate());
        let mut tally = Tally::default();
        tally.note("a", runs[0], "before");
        let taken = tally.take();
        tally.note("b", runs[1], "new");
        tally.note("a", runs[2], "since");
        tally.put_back(taken);
        assert_eq!(tally.take(), [failed("a", 2, runs[2], "since"), failed("b", 1, runs[1], "new")]);
    }

    #[test]
    fn more_kinds_than_one_append_takes_wait_for_the_next_and_none_for_ever() {
        let mut tally = Tally::default();
        let kind = |n: usize| format!("k{n}");
        (0..KINDS_AT_ONCE + 2).for_each(|n| tally.note(&kind(n), RunId::generate(), "x"));
        let first = tally.take();
        assert_eq!((first.len(), first[0].kind.as_str()), (KINDS_AT_ONCE, "k0"));
        // The early kinds fail again, and stand behind those that wait.
        tally.note("k0", RunId::generate(), "again");
        let kinds: Vec<String> = tally.take().into_iter().map(|f| f.kind).collect();
        assert_eq!(kinds, [kind(KINDS_AT_ONCE), kind(KINDS_AT_ONCE + 1), kind(0)]);
    }

    #[test]
    fn an_error_is_cut_between_characters_and_says_so() {
        assert_eq!(beginning("short"), "short");
        let exact = "ä".repeat(ERROR_CHARS);
        assert_eq!(beginning(&exact), exact);
        assert_eq!(beginning(&format!("{exact}b")), format!("{exact}…"));
        let mut tally = Tally::default();
        tally.note("a", RunId::generate(), &"x".repeat(10_000_000));
        assert_eq!(tally.take()[0].error.chars().count(), ERROR_CHARS + 1);
    }
}
