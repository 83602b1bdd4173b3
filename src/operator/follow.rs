//! Follows events as they are committed, and the notifications that announce them.
//!
//! A notification only says when to query. The events come from the log. `idx` rises in commit order, so "after the
//! last one that I saw" skips no event, even if the connection broke in between.

use std::time::Duration;

use tokio::time::Instant;

use super::{EventFilter, EventRow, Operator};
use crate::error::{Error, ErrorKind, Result};
use crate::pg::session::Opener;
use crate::store::listener::Listener;
use crate::store::queries;
use crate::store::role::Role;

/// How long an event whose notification was lost may stay unseen. Each follower makes a query so often. Longer: such an
/// event comes late.
const LOOK_ANYWAY: Duration = Duration::from_millis(1000);
/// The same while there is no connection that listens. It is shorter because each event comes that late then.
const LOOK_WITHOUT: Duration = Duration::from_millis(200);
/// The least time between two queries that notifications cause. Any role can send notifications, so without this a
/// flood of them would make a flood of queries. Longer: events in quick succession come late.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The time between two checks that the connection still listens. Shorter costs statements; longer, a lost connection
/// is noticed later.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// Events as they are committed; see [`Operator::follow`].
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

    /// Waits for the next events and returns them, oldest first. It returns at least one, each once, and leaves none
    /// out.
    ///
    /// # Errors
    ///
    /// The database's error. The position is kept: call it again to continue there.
    ///
    /// # Cancel safety
    ///
    /// Safe: an event counts as seen only when it is returned.
    pub async fn next(&mut self) -> Result<Vec<EventRow>> {
        loop {
            // Listen first, then query: an event that is committed in between is announced.
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
            // All events in the log were returned. A notification announces later ones.
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
    /// When the connection is checked next.
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

    /// Waits until a pod has notified the others since the last call. The notification does not say of what, and any
    /// role can send it. Read the data that you need, at a limited rate. Several notifications that arrive together
    /// count as one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::SessionLost`] when the connection has ended: open another.
    ///
    /// # Cancel safety
    ///
    /// Safe: the next call returns a notification that was not returned.
    pub async fn next(&mut self) -> Result<()> {
        loop {
            // An ended session sends nothing any more, and only a statement shows that it has ended. The time of that
            // statement does not depend on this call: a caller's `select!` may drop and repeat the call many times a
            // second.
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
