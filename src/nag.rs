//! Limits how often a lasting failure is logged.

use std::time::Duration;

use crate::protocol::Moment;

/// Counts consecutive failures of one thing, and remembers when that was last logged.
#[derive(Debug)]
pub(crate) struct Nag {
    every: Duration,
    since: Option<Moment>,
    said: Option<Moment>,
    times: u64,
}

impl Nag {
    /// Logs at most once per `every`.
    pub(crate) fn new(every: Duration) -> Self {
        Self { every, since: None, said: None, times: 0 }
    }

    /// Records a failure at `now`. Returns the number of consecutive failures if the caller should log it now. The
    /// first message is due when the failures have lasted for `patience`.
    pub(crate) fn failed(&mut self, now: Moment, patience: Duration) -> Option<u64> {
        self.times += 1;
        let since = *self.since.get_or_insert(now);
        let is_due = now.saturating_sub(since) >= patience
            && self.said.is_none_or(|said| now.saturating_sub(said) >= self.every);
        if !is_due {
            return None;
        }
        self.said = Some(now);
        Some(self.times)
    }

    /// Records a success. Keeps the time of the last message, so that something that fails every other time is not
    /// logged each time.
    pub(crate) fn passed(&mut self) {
        self.since = None;
        self.times = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_said_at_once_and_then_once_in_a_while() {
        let mut nag = Nag::new(Duration::from_secs(10));
        let at = Duration::from_secs;
        assert_eq!(nag.failed(at(100), Duration::ZERO), Some(1));
        assert_eq!(nag.failed(at(101), Duration::ZERO), None);
        nag.passed();
        assert_eq!(nag.failed(at(105), Duration::ZERO), None, "what fails every other time is not said each time");
        assert_eq!(nag.failed(at(111), Duration::ZERO), Some(2));
    }

    #[test]
    fn an_outage_is_said_when_it_lasts() {
        let mut nag = Nag::new(Duration::from_secs(10));
        let at = Duration::from_secs;
        assert_eq!(nag.failed(at(100), at(5)), None);
        assert_eq!(nag.failed(at(104), at(5)), None);
        assert_eq!(nag.failed(at(105), at(5)), Some(3));
    }
}
