//! When a worker counts as inactive: its owner has never reported it, or not for a while.
//!
//! An owner reports all its workers with one number, which it raises, and names those that it could not probe. An
//! observer compares the number with the one that it saw at its own earlier looks. It counts looks, and compares no
//! clock with another machine's (L8).
//!
//! * **Authority.** The observer's own looks, and `studio_workers.liveness` for a worker that it sees for the first time.
//! * **Bound.** [`Seen::is_stale`] after as many looks without a report as [`looks_needed`] says.
//! * **Failures.** A look that could not be made counts for nobody. An observer that slept makes one look, not many.
//! * **Not promised.** That observers agree at every moment. Each has its own looks.

use std::time::Duration;

use super::Moment;

/// The report of a worker that its owner has never reported.
pub const NEVER: i64 = -1;

/// The number of the last report that includes a worker, or [`NEVER`]. `has_reported`: the worker's own row says that it
/// was reported. `since`: the owner's report after which that row was written. `owner`: the owner's last report; `None` if
/// it made none. `is_named`: that last report names the worker as not probed.
#[must_use]
pub fn last_report(has_reported: bool, since: i64, owner: Option<i64>, is_named: bool) -> i64 {
    match owner {
        Some(owner) if owner > since && !is_named => owner,
        _ if has_reported => since,
        _ => NEVER,
    }
}

/// After how many looks in a row without a report a worker is inactive, if it must be after `stale_after` and a look is
/// made every `every`. At least one.
#[must_use]
pub fn looks_needed(stale_after: Duration, every: Duration) -> u32 {
    let every = every.as_nanos().max(1);
    u32::try_from(stale_after.as_nanos().div_ceil(every)).unwrap_or(u32::MAX).max(1)
}

/// Whether something that happens every `every`, jittered by a tenth, counts now: a look, or a round of a monitor.
/// `counted`: when the last one counted. What a notice or a paused process makes too early does not count: 0.8 of the time
/// must have passed. With 0.9 or more, one that jitter made early would not count; with little, a burst would.
#[must_use]
pub fn counts(counted: Option<Moment>, now: Moment, every: Duration) -> bool {
    counted.is_none_or(|counted| now.saturating_sub(counted) >= every.mul_f64(0.8))
}

/// Whether an owner reports a worker: a probe of it has ended lately, at `last`. Lately is within a report interval, or
/// within two intervals of its check and a time-out, because the pause between two probes varies.
#[must_use]
pub fn is_probed(last: Option<Moment>, now: Moment, report: Duration, interval: Duration, limit: Duration) -> bool {
    let lately = report.max(interval.saturating_mul(2).saturating_add(limit));
    last.is_some_and(|last| now.saturating_sub(last) <= lately)
}

/// What an observer saw of one worker's reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    report: i64,
    looks: u32,
}

impl Seen {
    /// The first sight of a worker. `is_inactive`: another observer has called it inactive. Then it is until the next
    /// report.
    #[must_use]
    pub const fn first(report: i64, is_inactive: bool) -> Self {
        Self { report, looks: if is_inactive { u32::MAX } else { 0 } }
    }

    /// A look showed this report. `counts`: enough of the observer's own time has passed since its last look that
    /// counted.
    pub const fn look(&mut self, report: i64, counts: bool) {
        if report != self.report {
            *self = Self { report, looks: 0 };
        } else if counts {
            self.looks = self.looks.saturating_add(1);
        }
    }

    /// Whether the worker is inactive.
    #[must_use]
    pub const fn is_stale(self, needed: u32) -> bool {
        self.report == NEVER || self.looks >= needed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_owners_report_includes_a_worker_unless_it_names_it_or_came_before_it() {
        for (has_reported, since, owner, is_named, last) in [
            (false, 0, None, false, NEVER),
            (true, 0, None, false, 0),
            // The owner's report is as old as the row.
            (false, 7, Some(7), false, NEVER),
            (true, 7, Some(7), false, 7),
            (false, 7, Some(8), false, 8),
            (true, 7, Some(12), false, 12),
            // The owner could not probe it since report 7.
            (true, 7, Some(12), true, 7),
            (false, 7, Some(12), true, NEVER),
        ] {
            assert_eq!(last_report(has_reported, since, owner, is_named), last, "{has_reported} {since} {owner:?}");
        }
    }

    #[test]
    fn three_looks_of_30_s_make_90_s_and_a_rare_look_needs_fewer() {
        assert_eq!(looks_needed(SECOND * 90, SECOND * 30), 3);
        assert_eq!(looks_needed(SECOND * 90, SECOND * 60), 2);
        assert_eq!(looks_needed(SECOND * 90, SECOND * 1000), 1);
        assert_eq!(looks_needed(Duration::ZERO, Duration::ZERO), 1);
    }

    #[test]
    fn a_worker_is_inactive_after_looks_without_a_report_and_active_with_the_next() {
        let mut seen = Seen::first(4, false);
        for stale in [false, false, true, true] {
            seen.look(4, true);
            assert_eq!(seen.is_stale(3), stale, "{seen:?}");
        }
        seen.look(5, true);
        assert!(!seen.is_stale(3));
    }

    #[test]
    fn a_look_counts_when_most_of_its_time_has_passed() {
        for (counted, now, expected) in [(None, 0, true), (Some(100), 123, false), (Some(100), 124, true)] {
            assert_eq!(counts(counted.map(|s| SECOND * s), SECOND * now, SECOND * 30), expected, "{counted:?} {now}");
        }
    }

    #[test]
    fn an_owner_reports_what_it_probed_within_a_report_or_two_intervals() {
        // The report interval, the check's interval and time-out, and until when a probe that ended at 100 s suffices.
        for (report, interval, limit, until) in [(30, 10, 1, 130), (30, 60, 5, 225), (1, 10, 1, 121)] {
            let is_probed =
                |now| is_probed(Some(SECOND * 100), SECOND * now, SECOND * report, SECOND * interval, SECOND * limit);
            assert!(is_probed(until) && !is_probed(until + 1), "{report} {interval} {limit}");
        }
        assert!(!is_probed(None, SECOND, SECOND, SECOND, SECOND));
    }

    #[test]
    fn a_worker_that_was_never_reported_is_inactive() {
        assert!(Seen::first(NEVER, false).is_stale(3));
    }

    #[test]
    fn a_burst_of_looks_counts_once_and_a_report_that_went_back_is_a_report() {
        let mut seen = Seen::first(4, false);
        for _ in 0..100 {
            seen.look(4, false);
        }
        assert!(!seen.is_stale(1));
        // After a failover that lost the last reports.
        seen.look(2, true);
        assert!(!seen.is_stale(1));
    }

    #[test]
    fn a_worker_that_another_observer_called_inactive_is_so_until_its_next_report() {
        let mut seen = Seen::first(4, true);
        assert!(seen.is_stale(3));
        seen.look(4, true);
        assert!(seen.is_stale(3));
        seen.look(5, true);
        assert!(!seen.is_stale(3));
    }
}
