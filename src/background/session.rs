//! One loop for all dedicated sessions that come and go: wait until the session is wanted, wait for the back-off, open
//! it, serve on it until it ends, and begin again, until the pod ends.
//!
//! The delays between two tries grow with the failures in a row. That a session was opened shortens no delay: a server
//! that accepts sessions and ends them would be opened again and again at the shortest one. So only the work on a
//! session resets the back-off.

use std::fmt;
use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::error::{Error, Result};

/// Why a session is not served any more.
#[derive(Debug)]
pub(crate) enum End {
    /// It failed.
    Lost(Error),
    /// [`Kept::unwanted`] returned this reason.
    Unwanted(String),
    /// There is nothing to serve for now. The next session is opened at the earliest after this pause.
    Done(Duration),
    /// The pod ends.
    Stopped,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(error) => error.fmt(f),
            Self::Unwanted(why) => f.write_str(why),
            Self::Done(_) => f.write_str("it is not needed for now"),
            Self::Stopped => f.write_str("the pod ends"),
        }
    }
}

/// The declaration of one session that is kept.
pub(crate) trait Kept {
    type Session;

    /// The delays between two tries.
    fn backoff(&self) -> Backoff;

    /// Resolves when a session is wanted: at once if it is wanted now. It lets go of everything that must not be held
    /// meanwhile.
    async fn wanted(&self);

    /// Resolves, with the reason, when no session is wanted any more. This ends an open and a serve in the middle. It
    /// is polled first right after [`Kept::wanted`] has resolved, in the same poll. By default never: then `serve`
    /// itself says when the session is not needed.
    async fn unwanted(&self) -> String {
        std::future::pending().await
    }

    /// Opens the session and makes it ready.
    async fn open(&self) -> Result<Self::Session>;

    /// No session could be opened; another try follows. Says so in the log: a failure that does not pass by itself
    /// needs a person, and is a warning.
    fn failed(&self, error: &Error);

    /// Works on the session until it fails or is not needed. Resets `backoff` whenever it has done work.
    async fn serve(&self, session: &mut Self::Session, backoff: &mut Backoff) -> End;

    /// Decides what becomes of a session that is not served any more, and says in the log why it ended.
    async fn ended(&self, session: Self::Session, end: &End);
}

/// Keeps a session until `stop` fires.
pub(crate) async fn keep<K: Kept>(kept: &K, stop: &CancellationToken) {
    let mut backoff = kept.backoff();
    let mut not_before = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = kept.wanted() => {}
        }
        let mut unwanted = pin!(kept.unwanted());
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = &mut unwanted => continue,
            opened = open(kept, not_before) => opened,
        };
        let mut session = match opened {
            Ok(session) => session,
            Err(e) => {
                kept.failed(&e);
                not_before = Some(Instant::now() + backoff.delay());
                continue;
            }
        };
        let end = tokio::select! {
            biased;
            () = stop.cancelled() => return kept.ended(session, &End::Stopped).await,
            why = &mut unwanted => End::Unwanted(why),
            end = kept.serve(&mut session, &mut backoff) => end,
        };
        // Letting go of a session may take a moment, and the stop does not wait for it.
        tokio::select! {
            biased;
            () = kept.ended(session, &end) => {}
            () = stop.cancelled() => return,
        }
        let pause = if let End::Done(pause) = end { pause } else { backoff.delay() };
        not_before = Some(Instant::now() + pause);
    }
}

async fn open<K: Kept>(kept: &K, not_before: Option<Instant>) -> Result<K::Session> {
    if let Some(not_before) = not_before {
        tokio::time::sleep_until(not_before).await;
    }
    kept.open().await
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;

    use tokio::sync::{Notify, watch};

    use super::*;
    use crate::error::ErrorKind;

    const SECOND: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    /// What happens to the next session.
    enum Fate {
        Unopened,
        /// The open takes this long.
        Slow(Duration),
        /// Opened, and lost before it has done work.
        LostAtOnce,
        /// Lost after work.
        LostAfterWork,
        Done(Duration),
        /// Served until something else ends it.
        Served,
    }

    /// A session whose fate the test decides. Without a fate, it is served for ever.
    struct Scripted {
        wanted: watch::Sender<bool>,
        fates: RefCell<VecDeque<Fate>>,
        /// When an open began, or a session was served.
        opens: RefCell<Vec<Instant>>,
        ends: RefCell<Vec<String>>,
        failures: Cell<usize>,
        served: Notify,
    }

    impl Scripted {
        fn new(fates: impl IntoIterator<Item = Fate>) -> Self {
            Self {
                wanted: watch::Sender::new(true),
                fates: RefCell::new(fates.into_iter().collect()),
                opens: RefCell::default(),
                ends: RefCell::default(),
                failures: Cell::new(0),
                served: Notify::new(),
            }
        }

        /// The pauses before the second and each later open.
        fn pauses(&self) -> Vec<Duration> {
            self.opens.borrow().windows(2).map(|two| two[1] - two[0]).collect()
        }

        /// Runs until a session with [`Fate::Served`] is served, then does `then`, and stops.
        async fn play(&self, then: impl AsyncFnOnce()) {
            let stop = CancellationToken::new();
            let test = async {
                self.served.notified().await;
                then().await;
                stop.cancel();
            };
            tokio::join!(keep(self, &stop), test);
        }
    }

    fn lost() -> Error {
        Error::new(ErrorKind::SessionLost, "lost")
    }

    impl Kept for Scripted {
        type Session = Fate;

        fn backoff(&self) -> Backoff {
            Backoff::new(SECOND, SECOND * 8)
        }

        async fn wanted(&self) {
            self.wanted.subscribe().wait_for(|wanted| *wanted).await.expect("the test lives");
        }

        async fn unwanted(&self) -> String {
            self.wanted.subscribe().wait_for(|wanted| !*wanted).await.expect("the test lives");
            "unwanted".to_owned()
        }

        async fn open(&self) -> Result<Fate> {
            self.opens.borrow_mut().push(Instant::now());
            let fate = self.fates.borrow_mut().pop_front().unwrap_or(Fate::Served);
            match fate {
                Fate::Unopened => Err(lost()),
                Fate::Slow(time) => {
                    self.served.notify_one();
                    tokio::time::sleep(time).await;
                    Ok(Fate::Served)
                }
                fate => Ok(fate),
            }
        }

        fn failed(&self, _: &Error) {
            self.failures.set(self.failures.get() + 1);
        }

        async fn serve(&self, fate: &mut Fate, backoff: &mut Backoff) -> End {
            match fate {
                Fate::LostAtOnce => End::Lost(lost()),
                Fate::LostAfterWork => {
                    backoff.reset();
                    End::Lost(lost())
                }
                Fate::Done(pause) => End::Done(*pause),
                _ => {
                    self.served.notify_one();
                    std::future::pending().await
                }
            }
        }

        async fn ended(&self, _: Fate, end: &End) {
            self.ends.borrow_mut().push(end.to_string());
        }
    }

    /// Compares with full delays, of which jitter takes up to a half. The timer of tokio has a precision of a
    /// millisecond.
    fn assert_near(pauses: &[Duration], full_seconds: &[u32]) {
        let is_near = |(pause, full): (&Duration, &u32)| (SECOND * *full / 2..=SECOND * *full + MS).contains(pause);
        let all_near = pauses.iter().zip(full_seconds).all(is_near);
        assert!(pauses.len() == full_seconds.len() && all_near, "{pauses:?} of {full_seconds:?} s");
    }

    #[tokio::test(start_paused = true)]
    async fn that_a_session_was_opened_shortens_no_delay_and_its_work_does() {
        use Fate::{LostAfterWork, LostAtOnce, Unopened};
        let kept = Scripted::new([LostAtOnce, Unopened, LostAtOnce, LostAtOnce, Unopened, LostAfterWork, LostAtOnce]);
        kept.play(async || {}).await;
        assert_near(&kept.pauses(), &[1, 2, 4, 8, 8, 1, 2]);
        assert_eq!((kept.failures.get(), kept.ends.borrow().len()), (2, 6));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_session_is_opened_at_once_and_one_that_is_done_is_followed_after_its_pause() {
        let began = Instant::now();
        let kept = Scripted::new([Fate::Done(SECOND * 60), Fate::Done(Duration::ZERO)]);
        kept.play(async || {}).await;
        assert_eq!(kept.opens.borrow()[0], began);
        let pauses = kept.pauses();
        assert!((SECOND * 60..=SECOND * 60 + MS).contains(&pauses[0]) && pauses[1] <= MS, "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_opened_while_no_session_is_wanted() {
        let kept = Scripted::new([Fate::Served]);
        kept.play(async || {
            kept.wanted.send_replace(false);
            tokio::time::sleep(SECOND * 60).await;
            assert_eq!(*kept.ends.borrow(), ["unwanted"]);
            assert_eq!(kept.opens.borrow().len(), 1);
            kept.wanted.send_replace(true);
            tokio::time::sleep(MS).await;
            assert_eq!(kept.opens.borrow().len(), 2, "the delay has passed meanwhile");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_ends_when_no_session_is_wanted_any_more() {
        let kept = Scripted::new([Fate::Slow(SECOND * 60)]);
        kept.play(async || {
            kept.wanted.send_replace(false);
            tokio::time::sleep(SECOND).await;
            kept.wanted.send_replace(true);
            kept.served.notified().await;
        })
        .await;
        assert_eq!(*kept.ends.borrow(), ["the pod ends"]);
        assert_near(&kept.pauses(), &[1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_an_open_at_once_and_hands_a_session_over_that_is_served() {
        let opening = Scripted::new([Fate::Slow(SECOND * 60)]);
        let before = Instant::now();
        opening.play(async || {}).await;
        assert_eq!((before.elapsed(), opening.ends.borrow().len()), (Duration::ZERO, 0));
        let serving = Scripted::new([Fate::Served]);
        serving.play(async || {}).await;
        assert_eq!(*serving.ends.borrow(), ["the pod ends"]);
    }
}
