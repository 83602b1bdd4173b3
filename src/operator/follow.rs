//! Events as they come, and the notifications that announce them.
//!
//! A notification only says when to look. What is returned comes from the log, and since `idx` rises in commit order,
//! "after the last one that I saw" can skip none, whatever became of the connection in between.

use std::time::Duration;

use tokio::time::Instant;

use super::{EventFilter, EventRow, Operator};
use crate::error::{Error, ErrorKind, Result};
use crate::pg::session::Opener;
use crate::store::listener::Listener;
use crate::store::queries;
use crate::store::role::Role;

/// How long an event whose notification was lost may stay unseen.
const LOOK_ANYWAY: Duration = Duration::from_millis(1000);
/// The same while there is no connection to listen on.
const LOOK_WITHOUT: Duration = Duration::from_millis(200);
/// How soon a notification leads to another look: it can be anybody's.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often a connection that is listened on is tried.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// Events as they come; see [`Operator::follow`].
#[derive(Debug)]
pub struct Follow {
    operator: Operator,
    filter: EventFilter,
    seen: i64,
    notices: Option<Notices>,
    looked: Option<Instant>,
}

impl Follow {
    pub(super) fn new(operator: Operator, mut filter: EventFilter, seen: i64) -> Self {
        filter.limit = filter.limit.filter(|most| *most > 0);
        Self { operator, filter, seen, notices: None, looked: None }
    }

    /// Waits for the next events and returns them, oldest first: at least one, each once, none left out.
    ///
    /// # Errors
    ///
    /// What the database said. The position is kept: call it again to go on where it stopped.
    ///
    /// # Cancel safety
    ///
    /// Safe: an event counts as seen only when it is returned.
    pub async fn next(&mut self) -> Result<Vec<EventRow>> {
        loop {
            // Listen first, then look: what is committed in between is announced.
            if self.notices.is_none() {
                self.notices = self.operator.notices().await.ok();
            }
            if let Some(looked) = self.looked {
                tokio::time::sleep_until(looked + LOOK_AGAIN).await;
            }
            let events = self.operator.events(self.filter.clone().after(self.seen)).await?;
            if let Some(last) = events.last() {
                self.seen = last.idx;
                return Ok(events);
            }
            // What is there was returned; from here on, somebody says that there is more.
            self.looked = Some(Instant::now());
            self.until_there_may_be_more().await;
        }
    }

    async fn until_there_may_be_more(&mut self) {
        let Some(notices) = &mut self.notices else { return tokio::time::sleep(LOOK_WITHOUT).await };
        let lost = tokio::select! {
            notice = notices.next() => notice.is_err(),
            () = tokio::time::sleep(LOOK_ANYWAY) => false,
        };
        if lost {
            self.notices = None;
        }
    }
}

/// The pods' notifications; see [`Operator::notices`].
pub struct Notices {
    session: Listener,
    /// When the connection is tried next.
    due: Instant,
}

impl std::fmt::Debug for Notices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notices").finish_non_exhaustive()
    }
}

impl Notices {
    pub(super) async fn open(opener: &Opener) -> Result<Self> {
        let session = Listener::open(opener, Role::Follow).await?;
        queries::listen(&session).await?;
        Ok(Self { session, due: Instant::now() + TRY_AGAIN })
    }

    /// Waits until a pod has told the others of something since the last call. It does not say what, and it can be
    /// anybody who sent it: read what you want to know, at most so often. Several that come at once are one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::SessionLost`] when the connection has ended: open another.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was not returned is returned by the next call.
    pub async fn next(&mut self) -> Result<()> {
        loop {
            // An ended session sends nothing any more; only a statement shows that it has ended. When it is due does
            // not depend on this call, which a caller's `select!` may drop and make again many times a second.
            match tokio::time::timeout_at(self.due, self.session.heard()).await {
                Ok(_) => return Ok(()),
                Err(_) => queries::listen(&self.session).await.map_err(lost)?,
            }
            self.due = Instant::now() + TRY_AGAIN;
        }
    }
}

fn lost(cause: Error) -> Error {
    Error::new(ErrorKind::SessionLost, format!("the connection for notifications has ended: {cause}"))
        .state("what was sent since then is lost")
        .help("open another, and look at the log for what was missed")
}
