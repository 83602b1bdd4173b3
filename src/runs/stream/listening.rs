//! The session that hears of chunks, for the readers of this pod. It is open while a reader is attached, and for
//! [`LINGER`] after that. On it, the pod also says which runs are read here (`super::entering`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::entering::Entering;
use crate::background::part::{Next, Part};
use crate::background::session::{self, End, Kept};
use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind, Result};
use crate::pg::session::Opener;
use crate::protocol::interest::LINGER;
use crate::runs::engine::Engine;
use crate::runs::run::RETRY_MIN;
use crate::store::listener::Listener;
use crate::store::role::Role;
use crate::store::streams;

/// How long the session collects notifications after it acted on some. Longer would delay chunks. Shorter would query
/// more often for nothing, in a flood or if many pods notify.
const HEAR_AGAIN: Duration = Duration::from_millis(10);
/// How long after a run has left this pod its readers are registered. Most runs leave because they end, and then their
/// readers get the end within this time, and need no row. Longer would delay what the next owner of the run says.
const HAS_LEFT: Duration = Duration::from_millis(100);

/// Keeps the session.
pub(crate) struct Listening {
    kept: Hearing,
}

impl Listening {
    pub(crate) fn new(engine: Arc<Engine>, opener: Opener) -> Self {
        Self { kept: Hearing { engine, opener, left_rows: AtomicBool::new(false) } }
    }
}

impl Part for Listening {
    const NAME: &'static str = "the listener of streams";

    fn first(&self) -> Next {
        Next::Within(Duration::ZERO)
    }

    /// One round is the whole life of the pod. The stop drops it, and the session with it.
    async fn work(&mut self) -> Next {
        session::keep(&self.kept, &self.kept.engine.member.root).await;
        Next::Never
    }
}

struct Hearing {
    engine: Arc<Engine>,
    opener: Opener,
    /// A session was lost that had written rows. So one is opened to delete them, although nobody reads any more. Only
    /// this loop reads and writes it.
    left_rows: AtomicBool,
}

impl Kept for Hearing {
    type Session = Listener;

    fn backoff(&self) -> Backoff {
        Backoff::new(RETRY_MIN, self.engine.member.settings.reconnect_backoff_max)
    }

    async fn wanted(&self) {
        if self.left_rows.load(Ordering::Relaxed) {
            return;
        }
        // `wait_for` does not fail: the engine owns the sender of the count.
        let _ = self.engine.readers.count.subscribe().wait_for(|count| *count > 0).await;
    }

    async fn open(&self) -> Result<Listener> {
        let session = Listener::open(&self.opener, Role::Stream).await?;
        streams::listen(&session).await?;
        Ok(session)
    }

    fn failed(&self, error: &Error) {
        tracing::debug!(
            target: "podlock", event = "stream_unheard", pod = %self.engine.member.pod_id, error = %error,
            "no session to hear of chunks; looking for them more often"
        );
    }

    async fn serve(&self, session: &mut Listener, backoff: &mut Backoff) -> End {
        let began = Instant::now();
        let readers = &self.engine.readers;
        // All waiting readers are queried for again, because notifications from before this session were not heard.
        readers.listening.send_replace(true);
        self.left_rows.store(true, Ordering::Relaxed);
        let end = hear(&self.engine, session, backoff).await;
        if matches!(end, End::Done(_)) {
            self.left_rows.store(false, Ordering::Relaxed);
        }
        // On a quiet channel, the work is to stand there.
        if began.elapsed() >= self.engine.member.settings.reconnect_backoff_max {
            backoff.reset();
        }
        end
    }

    async fn ended(&self, session: Listener, end: &End) {
        self.engine.readers.listening.send_replace(false);
        if let End::Lost(cause) = end {
            tracing::debug!(
                target: "podlock", event = "stream_unheard", pod = %self.engine.member.pod_id, cause = %cause,
                "lost the session that hears of chunks"
            );
        }
        session.close().await;
    }
}

/// Handles notifications until the session ends, or no reader has been attached for [`LINGER`].
async fn hear(engine: &Engine, session: &Listener, backoff: &mut Backoff) -> End {
    let mut count = engine.readers.count.subscribe();
    let mut runs = engine.registry.changes();
    let mut entering = Entering::default();
    let (mut quiet_until, mut idle_until, mut left_until) = (None, None, None);
    let mut rows_may_change = true;
    loop {
        let is_idle = *count.borrow_and_update() == 0;
        runs.borrow_and_update();
        idle_until = if is_idle { idle_until.or_else(|| Some(Instant::now() + LINGER)) } else { None };
        if std::mem::take(&mut rows_may_change) {
            entering.round(engine, session).await;
        }
        let is_quiet = quiet_until.is_some();
        let ended = session.ended();
        tokio::select! {
            biased;
            cause = ended => return End::Lost(Error::new(ErrorKind::SessionLost, cause.to_string())),
            () = tokio::time::sleep_until(quiet_until.unwrap_or_else(Instant::now)), if is_quiet => quiet_until = None,
            heard = session.heard(), if !is_quiet => {
                backoff.reset();
                engine.member.note_hint("streams");
                engine.readers.hear(&heard);
                quiet_until = Some(Instant::now() + HEAR_AGAIN);
            }
            // The senders live as long as the engine.
            _ = count.changed() => rows_may_change = true,
            _ = runs.changed(), if entering.waits_for_own() && left_until.is_none() => {
                left_until = Some(Instant::now() + HAS_LEFT);
            }
            () = tokio::time::sleep_until(left_until.unwrap_or_else(Instant::now)), if left_until.is_some() => {
                (rows_may_change, left_until) = (true, None);
            }
            () = tokio::time::sleep(entering.wait()) => rows_may_change = true,
            () = tokio::time::sleep_until(idle_until.unwrap_or_else(Instant::now)), if is_idle => {
                return if entering.leave_all(engine, session).await { End::Done(Duration::ZERO) } else { unwritten() };
            }
        }
    }
}

/// The rows of this pod may still be there. The next session deletes them.
fn unwritten() -> End {
    End::Lost(Error::new(ErrorKind::Database, "the rows of its readers could not be deleted"))
}
