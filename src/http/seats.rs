//! The seats of a server limit how many connections it has at a time. If all are taken, the connection that has been
//! idle longest gives its seat to the next client.
//!
//! A connection is idle while no request of it is being answered and its client has taken the last answer. It has sent
//! nothing yet, half a head, or nothing since.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::nag::Nag;

/// How long an idle connection keeps its seat while others wait. That is enough time for a client that has just
/// connected to send a request.
const IDLE_AT_LEAST: Duration = Duration::from_secs(1);
/// The time between two warnings that requests take all seats. That is often enough to see that it goes on.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// How long all seats must have been taken by requests before that is logged. A short burst is no news.
const SAY_AFTER: Duration = Duration::from_secs(5);

pub(super) struct Seats {
    most: usize,
    /// A permit for each connection.
    free: Arc<Semaphore>,
    /// The idle connections. A connection writes it when a request begins or ends. The accept loop reads it.
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    next: u64,
    /// For each idle connection, since when it has been idle and what wakes it. The longest idle comes first.
    since: BTreeMap<u64, (Instant, Arc<Notify>)>,
}

impl Seats {
    pub(super) fn new(most: usize) -> Arc<Self> {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(Self { most, free: Arc::new(Semaphore::new(most)), idle: Mutex::default() })
    }

    /// Takes a seat for the next connection, which begins idle. Waits for one, and closes idle connections meanwhile.
    pub(super) async fn take(self: &Arc<Self>) -> Arc<Seat> {
        let began = Instant::now();
        let mut nag = Nag::new(SAY_AGAIN);
        loop {
            let look_again = match self.free.clone().try_acquire_owned() {
                Ok(permit) => return Seat::new(self, permit),
                Err(_) => self.close_longest_idle(),
            };
            if let Some(times) = nag.failed(began.elapsed(), SAY_AFTER) {
                tracing::warn!(
                    target: "podlock", event = "http_full", connections = self.most, times,
                    "all connections are busy; further ones wait"
                );
            }
            tokio::select! {
                permit = self.free.clone().acquire_owned() => {
                    // The semaphore is never closed.
                    if let Ok(permit) = permit {
                        return Seat::new(self, permit);
                    }
                }
                () = tokio::time::sleep_until(look_again) => {}
            }
        }
    }

    /// Asks the connection that has been idle longest to close, if it was idle long enough. Returns when to check
    /// again.
    fn close_longest_idle(&self) -> Instant {
        let now = Instant::now();
        let mut idle = self.idle();
        let Some(longest) = idle.since.first_entry() else { return now + IDLE_AT_LEAST };
        let due = longest.get().0 + IDLE_AT_LEAST;
        if due > now {
            return due;
        }
        let (_, wake) = longest.remove();
        wake.notify_one();
        now + IDLE_AT_LEAST
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's seat. Dropping it frees the seat.
pub(super) struct Seat {
    seats: Arc<Seats>,
    /// Requests write it when they begin and end. Locked before [`Seats::idle`].
    state: Mutex<SeatState>,
    /// The accept loop notifies it when another client needs this seat. The connection waits for it.
    needed: Arc<Notify>,
    _permit: OwnedSemaphorePermit,
}

enum SeatState {
    /// Idle, with its place in the list of idle connections. It was removed from the list if it was asked to close.
    Idle(u64),
    Busy,
}

impl Seat {
    fn new(seats: &Arc<Seats>, permit: OwnedSemaphorePermit) -> Arc<Self> {
        let needed = Arc::new(Notify::new());
        let place = seats.idle().enter(&needed);
        Arc::new(Self { seats: seats.clone(), state: Mutex::new(SeatState::Idle(place)), needed, _permit: permit })
    }

    /// A request has arrived. The connection is busy until the returned value is dropped.
    pub(super) fn begin(self: Arc<Self>) -> Busy {
        if let SeatState::Idle(place) = std::mem::replace(&mut *self.state(), SeatState::Busy) {
            self.seats.idle().since.remove(&place);
        }
        Busy(self)
    }

    /// Resolves when another client waits for this seat, once each time that it is asked for.
    pub(super) async fn is_needed(&self) {
        self.needed.notified().await;
    }

    /// Another client waits for this seat, but it cannot be freed yet: an answer is on its way to a slow client. The
    /// seat will be asked for again later.
    pub(super) fn keep(&self) {
        let mut state = self.state();
        if let SeatState::Idle(place) = *state {
            let mut idle = self.seats.idle();
            idle.since.remove(&place);
            *state = SeatState::Idle(idle.enter(&self.needed));
        }
    }

    /// False if a request arrived before the connection learned that its seat is needed.
    pub(super) fn is_idle(&self) -> bool {
        matches!(*self.state(), SeatState::Idle(_))
    }

    fn state(&self) -> MutexGuard<'_, SeatState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let SeatState::Idle(place) = *self.state() {
            self.seats.idle().since.remove(&place);
        }
    }
}

impl Idle {
    fn enter(&mut self, wake: &Arc<Notify>) -> u64 {
        self.next += 1;
        self.since.insert(self.next, (Instant::now(), wake.clone()));
        self.next
    }
}

/// A request is being answered on this seat.
pub(super) struct Busy(Arc<Seat>);

impl Drop for Busy {
    fn drop(&mut self) {
        let place = self.0.seats.idle().enter(&self.0.needed);
        *self.0.state() = SeatState::Idle(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_asked_to_close(seat: &Seat) -> bool {
        tokio::time::timeout(Duration::from_millis(1), seat.is_needed()).await.is_ok() && seat.is_idle()
    }

    #[tokio::test]
    async fn the_longest_idle_gives_its_seat_and_busy_ones_keep_theirs() {
        let seats = Seats::new(3);
        let (busy, new, old) = (seats.take().await, seats.take().await, seats.take().await);
        let answer = busy.clone().begin();
        drop(new.clone().begin());
        tokio::time::sleep(IDLE_AT_LEAST).await;
        seats.close_longest_idle();
        assert!(is_asked_to_close(&old).await && !is_asked_to_close(&new).await && !is_asked_to_close(&busy).await);
        let next = tokio::spawn({
            let seats = seats.clone();
            async move { seats.take().await }
        });
        drop(old);
        let next = next.await.expect("a seat");
        drop(answer);
        drop((busy, new, next));
        assert_eq!(seats.free.available_permits(), 3);
        assert!(seats.idle().since.is_empty(), "what has gone is forgotten");
    }

    #[tokio::test]
    async fn a_client_that_has_just_connected_has_time_to_ask() {
        let seats = Seats::new(1);
        let began = Instant::now();
        let only = seats.take().await;
        seats.close_longest_idle();
        // The machine may pause in between.
        assert!(!is_asked_to_close(&only).await || began.elapsed() >= IDLE_AT_LEAST);
        let next = tokio::spawn({
            let seats = seats.clone();
            async move { seats.take().await }
        });
        only.is_needed().await;
        assert!(only.is_idle() && began.elapsed() >= IDLE_AT_LEAST);
        drop(only);
        next.await.expect("a seat");
    }

    #[tokio::test]
    async fn a_request_that_comes_first_keeps_the_seat() {
        let seats = Seats::new(1);
        let only = seats.take().await;
        tokio::time::sleep(IDLE_AT_LEAST).await;
        seats.close_longest_idle();
        let answer = only.clone().begin();
        assert!(!is_asked_to_close(&only).await, "it is busy");
        drop(answer);
        assert!(only.is_idle());
    }
}
