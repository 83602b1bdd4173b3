//! How long tests wait: on a machine that is ten times slower than usual they take longer, and hold.
//!
//! A wait for a condition ends when the condition holds, so its deadline costs nothing and is generous: [`SOON`]. What
//! must happen within a bound is given what a machine with nothing else to do may add to it, times [`slowness`].
#![allow(dead_code, reason = "no test program uses all of it")]

use std::time::Duration;

/// How long a condition may take to come true that nothing stands in the way of. A test that passes never waits so
/// long.
pub(crate) const SOON: Duration = Duration::from_secs(120);
/// How long a test may take. A test that passes takes seconds.
pub(crate) const TEST: Duration = Duration::from_secs(600);
/// How long opening a connection may take in tests that are not about that limit.
pub(crate) const CONNECT: Duration = Duration::from_secs(60);

/// How many tasks want each core now, or wanted it over the last minute: 1 where there is a core for each.
pub(crate) fn slowness() -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let load = std::fs::read_to_string("/proc/loadavg").expect("the machine's load");
    let mut words = load.split(' ');
    let average = words.next().and_then(|word| word.parse::<f64>().ok()).expect("the last minute's average");
    let now = words.nth(2).and_then(|word| word.split('/').next()?.parse::<f64>().ok()).expect("what runs now");
    #[allow(clippy::cast_precision_loss, reason = "a number of cores")]
    let cores = cores as f64;
    (average.max(now) / cores).max(1.0)
}

/// What this machine may add to a bound to which one that has nothing else to do adds at most so much.
pub(crate) fn slack(at_rest: Duration) -> Duration {
    at_rest.mul_f64(slowness())
}
