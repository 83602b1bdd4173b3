//! Delays between tries of one action.

use std::time::Duration;

/// Delays between tries. Each is twice as long as the one before, with jitter, up to a limit.
pub(crate) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { next: min.min(max), max }
    }

    pub(crate) fn delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (self.next * 2).min(self.max);
        delay.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}
