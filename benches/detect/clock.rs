//! One clock for all processes: Linux has one `CLOCK_MONOTONIC` for the whole system, so that readings of different
//! processes may be subtracted from each other.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Reading(i64);

/// Now.
pub(crate) fn now() -> Reading {
    let now = clock_gettime(ClockId::Monotonic);
    Reading(now.tv_sec * 1_000_000_000 + now.tv_nsec)
}

impl Reading {
    /// Milliseconds from `earlier` to this reading.
    pub(crate) fn ms_since(self, earlier: Self) -> f64 {
        (self.0 - earlier.0) as f64 / 1e6
    }
}
