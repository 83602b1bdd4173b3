//! Runs that failed on a pod and that the event log does not report yet.
//!
//! * **Authority.** The rows of the runs: each says why its run failed. The event is for people who follow the log.
//! * **Bound.** One entry per kind of run; a pod runs only kinds that it has a handler for. A pod appends at most once
//!   in a [`GAP`], however many runs fail, because all appends of the fleet wait for one lock.
//! * **Failures.** An entry that was surely not written is kept for the next append. An entry that may have been
//!   written is dropped. So an event may be missing, but no event counts a run twice.
//! * **Not promised.** If a pod is killed before its next append, no event reports its failed runs.

use std::borrow::Cow;
use std::time::Duration;

use crate::id::RunId;

/// How long a pod waits between two appends about failed runs: 10 s. The first failure after a quiet time is appended
/// at once.
///
/// Longer: people who follow the log see a failure late. Shorter: a large fleet whose runs all fail is busy with its
/// log. With this value, a hundred pods append ten times a second.
pub const GAP: Duration = Duration::from_secs(10);
/// The most kinds in one append: what the database accepts (`studio_note_failures`), so that one event stays small.
/// Further kinds wait for the next append.
pub const KINDS_AT_ONCE: usize = 32;
/// How many characters of an error a log line, an event, a list and the end of a stream show: a long sentence with its
/// causes. More would fill these with backtraces. The run's row has the whole error.
pub const ERROR_CHARS: usize = 1000;

/// What an event reports about the failed runs of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Their kind.
    pub kind: String,
    /// How many runs failed.
    pub runs: i64,
    /// The last run that failed.
    pub run: RunId,
    /// The beginning of that run's error.
    pub error: String,
}

/// The failures that the log does not report yet. The kind that has waited longest comes first.
#[derive(Debug, Default)]
pub struct Tally(Vec<Failed>);

impl Tally {
    /// Notes that a run failed.
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

    /// Whether there is nothing to report.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the entries for one append.
    pub fn take(&mut self) -> Vec<Failed> {
        let count = self.0.len().min(KINDS_AT_ONCE);
        self.0.drain(..count).collect()
    }

    /// Puts back entries that were taken and surely not written. A run that failed since then stays the last of its
    /// kind.
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

/// The beginning of an error, for places with little room: at most [`ERROR_CHARS`] characters, then "…" if more follow.
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
        // The early kinds fail again, and go behind the kinds that still wait.
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
