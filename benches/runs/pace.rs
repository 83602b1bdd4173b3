//! Runs that are started by the clock, and not when others have ended.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// Calls `each` at a rate for some time, with the moment at which the call is due. If this thread is late, it catches
/// up, and the delay counts. Returns when it has called for the last time.
pub(crate) async fn at_rate(rate: f64, time: Duration, each: impl Fn(Instant) + Send + 'static) {
    let (ended, end) = oneshot::channel::<()>();
    // The timers of tokio have steps of a millisecond.
    std::thread::spawn(move || {
        let (began, total) = (Instant::now(), (rate * time.as_secs_f64()).ceil() as u64);
        for nth in 0..total {
            let due = began + Duration::from_secs_f64(nth as f64 / rate);
            if let Some(early) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(early);
            }
            each(due);
        }
        drop(ended);
    });
    let _ = end.await;
}
