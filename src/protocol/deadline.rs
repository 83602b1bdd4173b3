//! L7, stop before you are replaced: when a silent pod gives up its runs, and when its runtime counts as blocked.
//!
//! * **Authority.** A pod decides this about itself alone, by its own clock, which also counts suspended time.
//! * **Not promised.** A task that never awaits does not stop. The fence protects its writes.

use std::time::Duration;

use super::Moment;

/// The pod's side of its lease.
///
/// The deadline counts from the moment at which the last *answered* ping was *sent*. The server cannot have counted
/// from an earlier moment, and a slow reply extends nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    answered: Moment,
    self_fence: Duration,
}

impl Deadline {
    /// A deadline whose last answered ping was sent at `sent`.
    #[must_use]
    pub const fn new(sent: Moment, self_fence: Duration) -> Self {
        Self { answered: sent, self_fence }
    }

    /// Notes that the ping sent at `sent` was answered. An answer to an older ping changes nothing.
    pub fn answered(&mut self, sent: Moment) {
        self.answered = self.answered.max(sent);
    }

    /// When the pod must have told its runs to stop.
    #[must_use]
    pub fn at(&self) -> Moment {
        self.answered.saturating_add(self.self_fence)
    }

    /// Whether the deadline has passed at `now`.
    #[must_use]
    pub fn has_passed(&self, now: Moment) -> bool {
        now >= self.at()
    }
}

/// Whether a new session of this pod may end its silent predecessor, and so free the lock that the server may still
/// hold for it. It may if this pod surely holds the other lock, or if its runs were told to stop. Otherwise peers could
/// find both locks free and begin the runs a second time.
#[must_use]
pub const fn may_end_silent(other_is_held: bool, runs_were_told: bool) -> bool {
    other_is_held || runs_were_told
}

/// Watches the application's runtime through a counter that one of its tasks raises.
///
/// Only time during which the watcher itself was awake counts. After a pause of the whole process (SIGSTOP, a suspended
/// host), the runtime gets time to raise its counter again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuntimeWatch {
    last_count: u64,
    last_tick: Moment,
    unmoved: Duration,
    tick: Duration,
}

impl RuntimeWatch {
    /// Begins at `now`. Call [`RuntimeWatch::look`] about every `tick`.
    #[must_use]
    pub const fn new(now: Moment, count: u64, tick: Duration) -> Self {
        Self { last_count: count, last_tick: now, unmoved: Duration::ZERO, tick }
    }

    /// Reads the counter. Returns how long the counter has not changed while the watcher was awake.
    pub fn look(&mut self, now: Moment, count: u64) -> Duration {
        let awake = now.saturating_sub(self.last_tick).min(self.tick * 2);
        self.last_tick = now;
        if count == self.last_count {
            self.unmoved += awake;
        } else {
            self.last_count = count;
            self.unmoved = Duration::ZERO;
        }
        self.unmoved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn l7_a_silent_session_is_ended_only_beside_the_other_lock_or_after_the_runs_were_told() {
        assert!(!may_end_silent(false, false));
        assert!(may_end_silent(true, false) && may_end_silent(false, true));
    }

    #[test]
    fn l7_the_deadline_counts_from_the_sending_of_the_last_answered_ping() {
        let mut deadline = Deadline::new(ms(1000), ms(800));
        assert!(!deadline.has_passed(ms(1799)));
        assert!(deadline.has_passed(ms(1800)));
        deadline.answered(ms(1500));
        assert_eq!(deadline.at(), ms(2300));
        deadline.answered(ms(1200));
        assert_eq!(deadline.at(), ms(2300), "an answer to an older ping changes nothing");
    }

    #[test]
    fn l7_a_slow_reply_does_not_extend_the_deadline() {
        let mut deadline = Deadline::new(ms(0), ms(800));
        // The ping was sent at 100 and answered at 700: the server may have counted from 100.
        deadline.answered(ms(100));
        assert!(deadline.has_passed(ms(900)));
    }

    #[test]
    fn a_blocked_runtime_is_seen_and_a_pause_of_the_whole_process_is_not_mistaken_for_one() {
        let mut watch = RuntimeWatch::new(ms(0), 0, ms(100));
        assert_eq!(watch.look(ms(100), 0), ms(100));
        assert_eq!(watch.look(ms(200), 0), ms(200));
        assert_eq!(watch.look(ms(300), 1), ms(0), "it moved");
        assert_eq!(watch.look(ms(60_300), 1), ms(200), "a minute asleep counts as two ticks");
        assert_eq!(watch.look(ms(60_400), 2), ms(0));
    }
}
