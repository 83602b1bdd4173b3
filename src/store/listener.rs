//! A session that LISTENs, and the notices that it received.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::role::Role;
use crate::error::Result;
use crate::pg::session::{Opener, Session};
use crate::protocol::notices::Heard;

/// A session with its inbox. It dereferences to the session.
pub(crate) struct Listener {
    session: Session,
    inbox: Arc<Inbox>,
}

/// Notices that nobody has taken yet. The task that reads the socket merges them, so a flood uses no memory and hides
/// no kind of notice.
#[derive(Default)]
struct Inbox {
    /// The task that reads the socket merges notices into it. [`Listener::heard`] takes all of them.
    heard: Mutex<Heard>,
    /// That task notifies it, and [`Listener::heard`] waits for it. `Notify` keeps one wake, so none is lost.
    arrived: Notify,
}

impl Inbox {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, payload: &str) {
        // A notice without a meaning is not logged: any role can send any number of them.
        if self.heard().hear(payload) {
            self.arrived.notify_one();
        }
    }
}

impl Listener {
    /// Opens the session. It receives notices only after it LISTENs.
    ///
    /// Cancel safe: a dropped call closes what it opened.
    pub(crate) async fn open(opener: &Opener, role: Role) -> Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let on_notice = Arc::clone(&inbox);
        let session = opener.open_listening(role, Arc::new(move |payload| on_notice.hear(payload))).await?;
        Ok(Self { session, inbox })
    }

    /// Returns all notices since the last call, once at least one has a meaning. Pends for ever after the connection
    /// has ended: watch [`Session::ended`] beside it.
    ///
    /// Cancel safe.
    pub(crate) async fn heard(&self) -> Heard {
        loop {
            let heard = std::mem::take(&mut *self.inbox.heard());
            if !heard.is_empty() {
                return heard;
            }
            self.inbox.arrived.notified().await;
        }
    }

    /// See [`Session::close`].
    pub(crate) async fn close(self) {
        self.session.close().await;
    }
}

impl Deref for Listener {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Listener {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}
