//! Delays between tries of one action.

use std::time::Duration;

/// Delays between tries. Each is twice as long as the one before, with jitter, up to a limit.
pub(crate) struct Backoff {
    min: Duration,
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        let min = min.min(max);
        Self { min, next: min, max }
    }

    pub(crate) fn delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (self.next * 2).min(self.max);
        delay.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// The action succeeded: the next delay is the shortest again.
    pub(crate) fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_and_begin_again_after_a_reset() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(20), ms(50));
        let is_near = |delay: Duration, full: Duration| (full / 2..=full).contains(&delay);
        for full in [20, 40, 50, 50] {
            let delay = backoff.delay();
            assert!(is_near(delay, ms(full)), "{delay:?} of {full} ms");
        }
        backoff.reset();
        let delay = backoff.delay();
        assert!(is_near(delay, ms(20)), "{delay:?}");
        let delay = Backoff::new(ms(20), ms(5)).delay();
        assert!(is_near(delay, ms(5)), "{delay:?}");
    }
}
