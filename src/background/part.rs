//! One loop for all parts of a pod that run in the background: wait until a round is due, do the work of the round, and
//! wait again, until the pod ends.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::Backoff;

/// The delays after failed rounds, unless a part declares others. Shorter ones load a server that is coming back.
/// Longer ones hold the part up after it is back.
const DELAYS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// When the next round of a part begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// When the part is woken or its period has passed.
    Wait,
    /// The same, but at the latest after this time.
    Within(Duration),
    /// The round failed: after a delay that nothing shortens. The delays grow with the failures in a row.
    BackOff,
    /// Never. The part has no more to do.
    Never,
}

/// The declaration of one part. Whatever the part remembers from round to round is in `self`.
pub(crate) trait Part: Send + 'static {
    /// Names the part in the error that a panic of it leaves behind, and in `ARCHITECTURE.md`.
    const NAME: &'static str;

    /// When the first round begins.
    fn first(&self) -> Next {
        Next::Wait
    }

    /// Resolves when a round is wanted. By default nothing wakes the part.
    ///
    /// It must be cancel safe: it is dropped when the period has passed, and called again after the round.
    fn woken(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// How long after a round the next one begins although nothing woke the part. The loop asks before each wait, so a
    /// part can add jitter. `None`: the part is only woken.
    fn period(&self) -> Option<Duration> {
        None
    }

    /// The delays after failed rounds.
    fn backoff(&self) -> Backoff {
        Backoff::new(DELAYS.0, DELAYS.1)
    }

    /// One round: load, decide, execute, report. It is dropped at any of its awaits when the pod ends.
    fn work(&mut self) -> impl Future<Output = Next> + Send;

    /// The pod has ended, or the part has no more to do. No round follows.
    fn stopped(&mut self) {}
}

/// Starts `part` as a tracked task. It ends when `stop` fires, even during its work. `panicked` gets the name of the
/// part if it panics.
pub(crate) fn spawn<P: Part>(
    part: P,
    tracker: &TaskTracker,
    runtime: &Handle,
    stop: CancellationToken,
    panicked: impl FnOnce(&'static str) + Send + 'static,
) {
    let watched = async move {
        if AssertUnwindSafe(run(part, stop)).catch_unwind().await.is_err() {
            panicked(P::NAME);
        }
    };
    tracker.spawn_on(watched, runtime);
}

async fn run(mut part: impl Part, stop: CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = rounds(&mut part) => {}
    }
    part.stopped();
}

async fn rounds(part: &mut impl Part) {
    let mut backoff = part.backoff();
    let mut next = part.first();
    loop {
        let due = match next {
            Next::Wait => part.period(),
            Next::Within(limit) => Some(part.period().map_or(limit, |period| period.min(limit))),
            Next::BackOff => {
                tokio::time::sleep(backoff.delay()).await;
                next = part.work().await;
                continue;
            }
            Next::Never => return,
        };
        backoff.reset();
        tokio::select! {
            biased;
            () = part.woken() => {}
            () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => {}
        }
        next = part.work().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::{Notify, mpsc};
    use tokio::time::{Instant, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const FULL_DELAYS: [Duration; 4] = [SECOND, Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(4)];

    /// A part whose rounds tell when they begin, and end as the test says.
    struct Scripted {
        wake: Arc<Notify>,
        first: Next,
        period: Option<Duration>,
        began: mpsc::UnboundedSender<Instant>,
        ends: mpsc::UnboundedReceiver<Next>,
        stopped: CancellationToken,
    }

    impl Part for Scripted {
        const NAME: &'static str = "the scripted part";

        fn first(&self) -> Next {
            self.first
        }

        async fn woken(&mut self) {
            self.wake.notified().await;
        }

        fn period(&self) -> Option<Duration> {
            self.period
        }

        fn backoff(&self) -> Backoff {
            Backoff::new(FULL_DELAYS[0], FULL_DELAYS[3])
        }

        /// Works until the test says how the round ends. A test that has gone makes it panic.
        async fn work(&mut self) -> Next {
            self.began.send(Instant::now()).expect("the test listens");
            self.ends.recv().await.expect("the test says how the round ends")
        }

        fn stopped(&mut self) {
            self.stopped.cancel();
        }
    }

    /// The test's side of a part.
    struct Script {
        wake: Arc<Notify>,
        began: mpsc::UnboundedReceiver<Instant>,
        ends: mpsc::UnboundedSender<Next>,
        stop: CancellationToken,
        stopped: CancellationToken,
        tracker: TaskTracker,
        panicked: mpsc::UnboundedReceiver<&'static str>,
    }

    impl Script {
        fn start(first: Next, period: Option<Duration>) -> Self {
            let wake = Arc::new(Notify::new());
            let (began_tx, began) = mpsc::unbounded_channel();
            let (ends, ends_rx) = mpsc::unbounded_channel();
            let (panicked_tx, panicked) = mpsc::unbounded_channel();
            let (stop, stopped, tracker) = Default::default();
            let this = Self { wake, began, ends, stop, stopped, tracker, panicked };
            let part = Scripted {
                wake: Arc::clone(&this.wake),
                first,
                period,
                began: began_tx,
                ends: ends_rx,
                stopped: this.stopped.clone(),
            };
            let tell = move |name| panicked_tx.send(name).expect("the test listens");
            spawn(part, &this.tracker, &Handle::current(), this.stop.clone(), tell);
            this
        }

        fn end_round(&self, next: Next) {
            self.ends.send(next).expect("the part works");
        }

        /// How long it takes until the next round begins. `None`: longer than an hour.
        async fn until_round(&mut self) -> Option<Duration> {
            let before = Instant::now();
            let began = timeout(Duration::from_secs(3600), self.began.recv()).await.ok()?;
            Some(began.expect("the part lives") - before)
        }

        /// The part's task ends, and is joined.
        async fn joined(&self) {
            self.tracker.close();
            timeout(Duration::from_secs(3600), self.tracker.wait()).await.expect("the part ends");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_begins_a_round_and_one_that_comes_during_a_round_is_not_lost() {
        let mut script = Script::start(Next::Wait, None);
        assert_eq!(script.until_round().await, None, "nothing woke it");
        script.wake.notify_one();
        assert_eq!(script.until_round().await, Some(Duration::ZERO));
        script.wake.notify_one();
        script.end_round(Next::Wait);
        assert_eq!(script.until_round().await, Some(Duration::ZERO));
        script.end_round(Next::Wait);
        assert_eq!(script.until_round().await, None, "one wake is one round");
    }

    #[tokio::test(start_paused = true)]
    async fn the_period_begins_a_round_and_a_round_can_ask_for_an_earlier_one() {
        let mut script = Script::start(Next::Wait, Some(SECOND));
        assert_eq!(script.until_round().await, Some(SECOND));
        script.end_round(Next::Within(SECOND / 4));
        assert_eq!(script.until_round().await, Some(SECOND / 4));
        script.end_round(Next::Within(SECOND * 4));
        assert_eq!(script.until_round().await, Some(SECOND), "the period is shorter");
        script.end_round(Next::Wait);
        tokio::time::advance(SECOND / 2).await;
        script.wake.notify_one();
        assert_eq!(script.until_round().await, Some(Duration::ZERO));
        script.end_round(Next::Wait);
        assert_eq!(script.until_round().await, Some(SECOND), "the period counts from the last round");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_round_can_begin_at_once() {
        let mut script = Script::start(Next::Within(Duration::ZERO), Some(SECOND));
        assert_eq!(script.until_round().await, Some(Duration::ZERO));
    }

    /// Expects a delay of about `full`, with jitter. The timer of tokio has a precision of a millisecond.
    fn assert_near(delay: Option<Duration>, full: Duration) {
        let near = full / 2..=full + Duration::from_millis(1);
        assert!(delay.is_some_and(|delay| near.contains(&delay)), "{delay:?} of {full:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn delays_grow_with_the_failures_in_a_row_and_nothing_shortens_them() {
        let mut script = Script::start(Next::Within(Duration::ZERO), Some(SECOND / 10));
        script.until_round().await.expect("the first round");
        for full in FULL_DELAYS {
            script.wake.notify_one();
            script.end_round(Next::BackOff);
            assert_near(script.until_round().await, full);
        }
        script.end_round(Next::Wait);
        assert_eq!(script.until_round().await, Some(Duration::ZERO), "the wake was kept");
        script.end_round(Next::BackOff);
        assert_near(script.until_round().await, FULL_DELAYS[0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_a_part_that_waits_one_that_works_and_one_that_backs_off() {
        let waiting = Script::start(Next::Wait, None);
        let mut working = Script::start(Next::Within(Duration::ZERO), None);
        let mut backing_off = Script::start(Next::Within(Duration::ZERO), None);
        working.until_round().await.expect("a round");
        backing_off.until_round().await.expect("a round");
        backing_off.end_round(Next::BackOff);
        tokio::task::yield_now().await;
        for script in [waiting, working, backing_off] {
            let before = Instant::now();
            script.stop.cancel();
            script.joined().await;
            assert_eq!(before.elapsed(), Duration::ZERO);
            assert!(script.stopped.is_cancelled());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_has_no_more_to_do_ends() {
        let mut script = Script::start(Next::Within(Duration::ZERO), Some(SECOND));
        script.until_round().await.expect("a round");
        script.end_round(Next::Never);
        script.joined().await;
        assert!(script.stopped.is_cancelled() && !script.stop.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_reported_with_the_name_of_the_part() {
        let mut script = Script::start(Next::Within(Duration::ZERO), None);
        script.until_round().await.expect("a round");
        // The part expects a word of its test, which is now gone.
        let (ends, _) = mpsc::unbounded_channel();
        script.ends = ends;
        script.joined().await;
        assert_eq!(script.panicked.recv().await, Some("the scripted part"));
    }
}
