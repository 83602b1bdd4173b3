//! Which events are alerts, and what becomes of an alert whose delivery failed.
//!
//! * **Bound.** One alert delays the later ones for at most [`Retries::longest`], however the receiver behaves (L12).
//! * **Not promised.** That an alert is delivered once: a deliverer that dies between a delivery and the write of its
//!   position leaves the alert to the next one, which delivers it again.

use std::time::Duration;

use super::ending::Reason;
use super::event::EventKind;
use super::names::named;

named! {
    /// What an alert is about.
    #[non_exhaustive]
    pub enum AlertKind {
        /// A pod ended in a way that counts as a crash: it was buried or replaced as `lost`, `stalled` or `replaced`.
        Lost = "lost",
        /// A run was quarantined.
        Quarantined = "quarantined",
        /// Workers of a pod were not reported for a while.
        Inactive = "inactive",
    }
}

/// Which alert an event is. `None`: it is none. `reason` is why the incarnation ended that the event buries or replaces. A
/// reason that this version does not know is no alert.
#[must_use]
pub fn alert_of(event: EventKind, reason: Option<&str>) -> Option<AlertKind> {
    match event {
        EventKind::Buried | EventKind::Joined => {
            reason.and_then(Reason::parse).filter(|reason| reason.is_crash()).map(|_| AlertKind::Lost)
        }
        EventKind::Quarantined => Some(AlertKind::Quarantined),
        EventKind::WorkersInactive => Some(AlertKind::Inactive),
        EventKind::Draining
        | EventKind::Detached
        | EventKind::Returned
        | EventKind::Suspected
        | EventKind::Evicted
        | EventKind::Held
        | EventKind::Claimed
        | EventKind::Snapshot
        | EventKind::RunFailed
        | EventKind::ForeignLock
        | EventKind::Cordoned
        | EventKind::Uncordoned
        | EventKind::WorkersActive => None,
    }
}

/// How often a delivery is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// The most attempts, the first included. At least one is made.
    pub attempts: u32,
    /// The delay after the first failed attempt. Each further delay is twice as long as the one before.
    pub first: Duration,
    /// The longest delay.
    pub most: Duration,
}

impl Retries {
    /// The delay after the attempt of this number, without jitter.
    fn after(&self, attempt: u32) -> Duration {
        let doubled = 1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(doubled).min(self.most)
    }

    /// How long one alert delays the later ones at most, if each attempt takes at most `timeout`. Statements of the
    /// deliverer are not included.
    #[must_use]
    pub fn longest(&self, timeout: Duration) -> Duration {
        let attempts = self.attempts.max(1);
        let delays = (1..attempts).map(|attempt| self.after(attempt)).fold(Duration::ZERO, Duration::saturating_add);
        delays.saturating_add(timeout.saturating_mul(attempts))
    }
}

/// What an attempt met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// The receiver has the alert.
    Accepted,
    /// The receiver read the alert and refuses it. The same bytes would be refused again.
    Refused,
    /// Another attempt may succeed: no answer, or one that does not judge the alert itself.
    Failed,
}

/// What the status of an HTTP answer says of the attempt.
///
/// Most of 4xx is a fault that somebody repairs: a secret that was not rolled out yet (401, 403), a route that a
/// deployment has not opened yet (404), a limit of requests (429). So these are tried again. Four statuses are about
/// this very message: 400, 413, 415 and 422. 410 says that nobody wants messages here any more. A redirect is not
/// followed, since it would send a signed message to a host that the service did not name.
#[must_use]
pub const fn judge(status: u16) -> Met {
    match status {
        200..=299 => Met::Accepted,
        400 | 410 | 413 | 415 | 422 => Met::Refused,
        _ => Met::Failed,
    }
}

/// What the deliverer does after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It goes on to the next alert.
    Delivered,
    /// It gives the alert up and goes on to the next one.
    GiveUp,
    /// It tries the same alert again after this time.
    Again(Duration),
}

/// What follows the attempt number `attempt`, counted from 1. `draw` is a random number from 0 to 1: the delay is between
/// a half and the whole of the one that [`Retries`] says.
#[must_use]
pub fn then(met: Met, attempt: u32, retries: &Retries, draw: f64) -> Then {
    match met {
        Met::Accepted => Then::Delivered,
        Met::Refused => Then::GiveUp,
        Met::Failed if attempt >= retries.attempts => Then::GiveUp,
        Met::Failed => Then::Again(retries.after(attempt).mul_f64(0.5 + draw.clamp(0.0, 1.0) / 2.0)),
    }
}

/// The number of the next attempt, if a former deliverer began `begun` of them. It may have died before it could write
/// that the last one succeeded or failed. So the next deliverer makes at least one more.
#[must_use]
pub fn next_attempt(begun: u32, retries: &Retries) -> u32 {
    begun.saturating_add(1).min(retries.attempts.max(1))
}

/// How a position in the log compares with the log as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// All events after the position are there.
    Whole,
    /// Events between the position and this snapshot were deleted.
    Cut {
        /// The position of the snapshot. The events after it are there.
        snapshot: i64,
    },
    /// The log ends before the position: a failover lost its end, or it was restored.
    Beyond,
}

/// Compares a position with the log. `snapshot`: the position of the snapshot after `reached`, if there is one; a
/// snapshot stands in place of all events up to it. `end`: the position of the last event of the log, 0 if it is empty.
#[must_use]
pub const fn position(reached: i64, snapshot: Option<i64>, end: i64) -> Position {
    match snapshot {
        _ if end < reached => Position::Beyond,
        Some(snapshot) if snapshot > reached => Position::Cut { snapshot },
        _ => Position::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const RETRIES: Retries = Retries { attempts: 5, first: S, most: Duration::from_secs(5) };

    #[test]
    fn a_crash_a_quarantine_and_inactive_workers_are_alerts_and_nothing_else_is() {
        for event in EventKind::ALL {
            let ends = matches!(event, EventKind::Buried | EventKind::Joined);
            for reason in Reason::ALL {
                let expected = match event {
                    EventKind::Quarantined => Some(AlertKind::Quarantined),
                    EventKind::WorkersInactive => Some(AlertKind::Inactive),
                    _ if ends && reason.is_crash() => Some(AlertKind::Lost),
                    _ => None,
                };
                assert_eq!(alert_of(event, Some(reason.as_str())), expected, "{event} {reason}");
            }
            if ends {
                assert_eq!(alert_of(event, None), None, "a pod that replaces nobody");
                assert_eq!(alert_of(event, Some("of a newer version")), None);
            }
        }
        assert_eq!(alert_of(EventKind::Buried, Some("shutdown")), None, "a clean stop is no alert");
    }

    #[test]
    fn delays_grow_with_jitter_up_to_the_longest_and_the_last_attempt_gives_up() {
        for (attempt, whole) in [(1, 1), (2, 2), (3, 4), (4, 5)] {
            let whole = S * whole;
            assert_eq!(then(Met::Failed, attempt, &RETRIES, 1.0), Then::Again(whole));
            assert_eq!(then(Met::Failed, attempt, &RETRIES, 0.0), Then::Again(whole / 2));
        }
        for attempt in [5, 6, u32::MAX] {
            assert_eq!(then(Met::Failed, attempt, &RETRIES, 0.5), Then::GiveUp);
        }
        for attempt in [1, 4, 5] {
            assert_eq!(then(Met::Accepted, attempt, &RETRIES, 0.5), Then::Delivered);
            assert_eq!(then(Met::Refused, attempt, &RETRIES, 0.5), Then::GiveUp);
        }
        let extreme = Retries { attempts: u32::MAX, first: Duration::MAX, most: Duration::MAX };
        assert_eq!(extreme.after(u32::MAX), Duration::MAX);
    }

    #[test]
    fn l12_one_alert_delays_the_others_for_at_most_the_sum_of_its_delays_and_time_outs() {
        assert_eq!(RETRIES.longest(S * 10), S * (1 + 2 + 4 + 5) + S * 10 * 5);
        assert_eq!(Retries { attempts: 1, ..RETRIES }.longest(S * 10), S * 10);
        assert_eq!(Retries { attempts: 0, ..RETRIES }.longest(S * 10), S * 10);
    }

    #[test]
    fn a_status_that_judges_the_message_is_final_and_any_other_fault_is_tried_again() {
        for (status, met) in [
            (200, Met::Accepted),
            (204, Met::Accepted),
            (299, Met::Accepted),
            (101, Met::Failed),
            (301, Met::Failed),
            (307, Met::Failed),
            (400, Met::Refused),
            (401, Met::Failed),
            (403, Met::Failed),
            (404, Met::Failed),
            (408, Met::Failed),
            (409, Met::Failed),
            (410, Met::Refused),
            (413, Met::Refused),
            (415, Met::Refused),
            (422, Met::Refused),
            (425, Met::Failed),
            (429, Met::Failed),
            (500, Met::Failed),
            (503, Met::Failed),
        ] {
            assert_eq!(judge(status), met, "{status}");
        }
    }

    #[test]
    fn a_deliverer_that_takes_over_counts_on_and_makes_at_least_one_attempt() {
        for (begun, next) in [(0, 1), (1, 2), (4, 5), (5, 5), (u32::MAX, 5)] {
            assert_eq!(next_attempt(begun, &RETRIES), next, "{begun}");
        }
        assert_eq!(next_attempt(0, &Retries { attempts: 0, ..RETRIES }), 1);
    }

    #[test]
    fn a_position_may_lie_before_the_log_or_behind_it() {
        for (reached, snapshot, end, expected) in [
            (5, None, 9, Position::Whole),
            (9, None, 9, Position::Whole),
            (0, None, 0, Position::Whole),
            // Its own position was replaced by the snapshot: nothing after it is missing.
            (5, Some(5), 9, Position::Whole),
            (5, Some(6), 9, Position::Cut { snapshot: 6 }),
            (5, Some(9), 9, Position::Cut { snapshot: 9 }),
            (12, None, 9, Position::Beyond),
            (12, Some(3), 9, Position::Beyond),
        ] {
            assert_eq!(position(reached, snapshot, end), expected, "{reached} {snapshot:?} {end}");
        }
    }
}
