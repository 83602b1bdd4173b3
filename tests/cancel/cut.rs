//! Futures that are dropped after so many polls, or after so long.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// A future that ends with `None` when the one in it has been pending so many times; dropping it drops that one.
struct Cut<F> {
    inner: Pin<Box<F>>,
    left: usize,
}

impl<F: Future> Future for Cut<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(done) = self.inner.as_mut().poll(context) {
            return Poll::Ready(Some(done));
        }
        self.left -= 1;
        if self.left == 0 { Poll::Ready(None) } else { Poll::Pending }
    }
}

/// Drops the future at its first pending poll, another at its second, and so on until one completes; all of it so many
/// `times`, so that what is left behind at one of them alone shows. Beyond the 40th poll, every fifth.
pub(crate) async fn at_each_poll<T, F: Future<Output = T>>(times: usize, what: &str, mut make: impl FnMut() -> F) {
    for _ in 0..times {
        at_each_poll_of(what, async || (), |()| make()).await;
    }
}

/// The same of a future that is made from what `prepare` gives each time.
pub(crate) async fn at_each_poll_of<P, T, F: Future<Output = T>>(
    what: &str,
    mut prepare: impl AsyncFnMut() -> P,
    mut make: impl FnMut(P) -> F,
) {
    for n in (1..=40).chain((45..2000).step_by(5)) {
        let inner = Box::pin(make(prepare().await));
        if (Cut { inner, left: n }).await.is_some() {
            return;
        }
    }
    panic!("{what} has not completed in 2000 polls");
}

/// Drops the future after 0 ms, another after 1 ms, and so on until three in a row complete. Beyond 40 ms every fifth,
/// and beyond 200 ms each a tenth later than the one before: what takes so long takes long because the machine is slow,
/// and with even steps the whole would take longer by the square of that.
pub(crate) async fn after_each_delay<T, F: Future<Output = T>>(what: &str, mut make: impl FnMut() -> F) {
    let mut completed = 0;
    let slow = std::iter::successors(Some(210_u64), |ms| Some(ms + ms / 10));
    for ms in (0..=40).chain((45..=200).step_by(5)).chain(slow.take_while(|ms| *ms < 60_000)) {
        match tokio::time::timeout(Duration::from_millis(ms), make()).await {
            Ok(_) => completed += 1,
            Err(_) => completed = 0,
        }
        if completed == 3 {
            println!("{what}: cut after each of {ms} ms");
            return;
        }
    }
    panic!("{what} has not completed in a minute");
}
