//! The admission of starting pods: of a whole fleet that starts at once, a few pods at a time do what is dear for the
//! server.
//!
//! A start opens sessions and reads the schema's state. Two hundred at once on a small server take so long that they
//! run into their time-outs, begin again, and keep the server busy with that. So a pod takes one of a few slots, and
//! waits until one is free.
//!
//! * **Authority.** None. A slot is no right: nothing is concluded from it, and no law depends on it. Pods that come
//!   back after a loss take none, because a living pod must not look dead for want of a slot.
//! * **Bound.** A pod waits at most [`LONGEST`] and then starts all the same: any role of the database can take the
//!   slots. Each pod waits for another time, so that the rest of a large fleet does not start all at once then. A pod
//!   whose start itself waits, for the lock of a predecessor, frees its slot.
//! * **Failures.** A slot is free as soon as the session that took it ends.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::error::Result;
use crate::id::PodId;
use crate::pg::session::Session;
use crate::store::admission::{self, Slot};

/// How many pods start at a time: 4. More make each start slower, and the service's own statements with it: with 8 on
/// two cores, a fleet of 200 is in no sooner, and the slowest statements of others take half as long again. Fewer leave
/// the server idle while a start waits for the network.
const SLOTS: i32 = 4;
/// The longest wait for a slot: a random time between these two. Five hundred pods need about a minute on two cores. If
/// shorter, or the same for all, the rest starts all at once, and many of them fail. Longer lets somebody who takes the
/// slots delay a start for longer.
const LONGEST: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(180));
/// The delays between two tries. Longer leaves slots unused when few pods wait. Shorter costs statements: with 400 ms,
/// five hundred pods would make a thousand tries a second.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// When a pod reports that it waits, and how often again.
const SAY_AGAIN: Duration = Duration::from_secs(5);

/// A pod's place among those that start.
pub(super) struct Admission {
    session: Session,
    slot: Cell<Option<Slot>>,
}

impl Admission {
    /// Waits for a slot on a session that the pod needs for its start anyway.
    pub(super) async fn wait(session: Session, pod: &PodId) -> Result<Self> {
        let began = Instant::now();
        let give_up = began + LONGEST.0 + (LONGEST.1 - LONGEST.0).mul_f64(fastrand::f64());
        let mut say_at = began + SAY_AGAIN;
        let mut backoff = Backoff::new(TRY_AGAIN.0, TRY_AGAIN.1);
        let slot = loop {
            let slot = admission::take(&session, SLOTS, fastrand::i32(0..SLOTS)).await?;
            let now = Instant::now();
            if slot.is_some() || now >= give_up {
                break slot;
            }
            if now >= say_at {
                say_at = now + SAY_AGAIN;
                tracing::info!(
                    target: "podlock", event = "start_waits", pod = %pod,
                    waited_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                    "many pods start at once: this one waits for its turn, so that the server can keep up"
                );
            }
            tokio::time::sleep(backoff.delay()).await;
        };
        Ok(Self { session, slot: Cell::new(slot) })
    }

    /// The session that has the slot.
    pub(super) fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Lets another pod start. Returns `false` if the slot could not be freed. It is free when the session ends.
    pub(super) async fn free(&self) -> bool {
        let Some(slot) = self.slot.take() else { return true };
        let freed = admission::free(&self.session, slot).await;
        if let Err(e) = &freed {
            tracing::debug!(
                target: "podlock", event = "slot_kept", error = %e, "the slot of a start is freed when its session ends"
            );
        }
        freed.is_ok()
    }

    /// Frees the slot. Returns the session, which can have another purpose from now on. `None`: the slot could not be
    /// freed, so the session is closed.
    pub(super) async fn end(self) -> Option<Session> {
        if self.free().await {
            return Some(self.session);
        }
        self.session.close().await;
        None
    }
}
