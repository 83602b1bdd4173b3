//! The pod's own clock. It is monotonic, and counts suspended time (L7).

use rustix::time::{ClockId, clock_gettime};

use crate::protocol::Moment;

/// The time now, on `CLOCK_BOOTTIME`. It can only be compared with another reading on the same host.
pub(crate) fn now() -> Moment {
    #[cfg(target_os = "linux")]
    let clock = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = ClockId::Monotonic;
    let t = clock_gettime(clock);
    let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(t.tv_nsec).unwrap_or(0);
    Moment::new(seconds, nanos)
}
