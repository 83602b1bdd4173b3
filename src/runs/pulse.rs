//! The pulse: a counter that shows the keeper that the application's runtime still runs tasks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::background::part::{Next, Part};
use crate::membership::Membership;

/// The longest time between two pulses, however long `stall_after` is. A beat counts a pulse as progress, so one should
/// come between two beats.
const LONGEST: Duration = Duration::from_millis(500);

pub(crate) struct Pulse {
    pub(crate) member: Arc<Membership>,
}

impl Part for Pulse {
    const NAME: &'static str = "the pulse";

    fn first(&self) -> Next {
        Next::Within(Duration::ZERO)
    }

    /// Eight pulses in `stall_after`: a few late ones are no stall.
    fn period(&self) -> Option<Duration> {
        Some((self.member.settings.stall_after / 8).min(LONGEST))
    }

    async fn work(&mut self) -> Next {
        self.member.runtime_pulse.fetch_add(1, Ordering::AcqRel);
        Next::Wait
    }
}
