//! The writer: groups the writes of a pod's runs, so that many need few commits.
//!
//! A commit takes as long as the disk needs, however much it holds. So a pod that makes one statement for each write is
//! limited by its disk. The writer has no timer in the way of a write, and delays nothing:
//!
//! 1. A write that finds a free slot ([`crate::protocol::slots`]) is sent at once, by its caller, alone.
//! 2. A write that finds none waits in the *lane* of its kind.
//! 3. When a slot comes free, a worker takes the lane that has waited longest, and sends all of its writes in one
//!    statement.
//!
//! Each caller gets the answer to its own write. Where a group has no answer, the caller makes the write alone, as if
//! there were no group: another transaction has locked the row, the run is no longer this attempt's, a start was not
//! inserted, or the server refused the statement because of the row. So a write waits for a foreign lock only by itself,
//! and finds its own error.
//!
//! * **Order.** An attempt makes its writes one after another, and each has a number (`runs::run`). A call that was
//!   dropped leaves a write in its lane. The worker does not send it, unless it was sent already. Then the number keeps
//!   it from overtaking.
//! * **Lost replies.** Each caller of a group gets the error, and repeats its write under the same number, or under the
//!   same id.
//! * **Memory.** The lanes hold at most [`ROOM_KIB`]. Further callers wait, in order.
//! * **Connections.** Writes that are made alone leave one connection of the pool to the groups.
//! * **L7.** A pod that is past its deadline sends no write of an owner. The deadline is checked before each statement.
//! * **The end of the pod.** A group under way is in doubt for its callers. Writes that wait, and those that come later,
//!   are made alone. A clean stop waits for the runs first, so nothing waits then.

mod lanes;
mod send;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::{Error, ErrorKind, Result};
use crate::membership::clock;
use crate::protocol::Moment;
use crate::protocol::slots::{Slots, Use};
use lanes::Lanes;

pub(crate) use lanes::{NewStart, Release};
pub(crate) use send::Sending;

/// The most statements of the writer that are under way at a time: 3. One more commit at a time keeps the disk busy while
/// the server works on the others. With more, the groups are smaller, and the pool (4 connections by default) has none
/// left for anything else.
const STATEMENTS_MOST: usize = 3;
/// The room of the lanes, in KiB: 64 MiB. A write takes at least one KiB of it. With less, large checkpoints wait for one
/// another. More is memory that a pod may use while the database is away.
const ROOM_KIB: u32 = 64 * 1024;

/// Groups the writes of a pod's runs.
pub(crate) struct Writer {
    /// Callers and workers change it. Never held across an await.
    state: Mutex<State>,
    /// A write waits and a slot may be free: wakes one worker. `Notify` keeps one wake while all workers are busy, and
    /// each looks again before it waits. So none is lost.
    wake: Notify,
    /// The room of the lanes that is left.
    room: Arc<Semaphore>,
    /// The writes that may be made alone at the same time: all connections of the pool but one.
    alone: Arc<Semaphore>,
}

struct State {
    lanes: Lanes,
    slots: Slots,
    /// The pod has ended.
    is_closed: bool,
}

/// A write that waits in a lane.
struct Waiting<T, A> {
    what: T,
    bytes: usize,
    /// Where it stands among the writes of all lanes.
    nth: u64,
    /// `None`: the caller makes the write alone.
    reply: oneshot::Sender<Result<Option<A>>>,
    _room: OwnedSemaphorePermit,
}

impl<T, A> Waiting<T, A> {
    /// Answers the caller. What the write held is free before.
    fn answer(self, answer: Result<Option<A>>) {
        let Self { what, reply, .. } = self;
        drop(what);
        // A caller that is gone needs no answer.
        let _ = reply.send(answer);
    }
}

/// A slot of a statement under way. It comes free when this is dropped.
struct Taken {
    writer: Arc<Writer>,
    id: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut state = self.writer.state();
        state.slots.give_back(self.id);
        let is_wanted = !state.lanes.is_empty();
        drop(state);
        if is_wanted {
            self.writer.wake.notify_one();
        }
    }
}

impl Writer {
    /// A writer over a pool with so many connections.
    pub(crate) fn new(connections: usize) -> Arc<Self> {
        let others = connections.saturating_sub(1).max(1);
        let state = State { lanes: Lanes::default(), slots: Slots::new(others.min(STATEMENTS_MOST)), is_closed: false };
        Arc::new(Self {
            state: Mutex::new(state),
            wake: Notify::new(),
            room: Arc::new(Semaphore::new(ROOM_KIB as usize)),
            alone: Arc::new(Semaphore::new(others)),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for one write, and the permit to make it alone. `None`: the write must wait.
    fn at_once(self: &Arc<Self>) -> Option<(Taken, OwnedSemaphorePermit)> {
        let mut state = self.state();
        if !state.lanes.is_empty() {
            return None;
        }
        let permit = Arc::clone(&self.alone).try_acquire_owned().ok()?;
        let id = state.slots.take(Use::Alone, clock::now())?;
        Some((Taken { writer: Arc::clone(self), id }, permit))
    }

    /// Makes a write when its turn comes: `alone`, or as one of a group. `what` is called only for a group. `bytes` is
    /// about how many bytes the write has.
    ///
    /// Cancel safe as the write itself: a dropped call was made or not.
    async fn write<T, A, R>(
        self: &Arc<Self>,
        bytes: usize,
        what: impl FnOnce() -> T,
        enqueue: impl FnOnce(&mut Lanes, Waiting<T, A>),
        alone: impl Future<Output = Result<R>>,
        answer: impl FnOnce(A) -> R,
    ) -> Result<R> {
        if let Some(_taken) = self.at_once() {
            return alone.await;
        }
        let kib = u32::try_from(bytes / 1024).unwrap_or(ROOM_KIB).clamp(1, ROOM_KIB);
        let room = acquire(&self.room, kib).await?;
        let (reply, answered) = oneshot::channel();
        let is_enqueued = {
            let mut state = self.state();
            let is_open = !state.is_closed;
            if is_open {
                // Later writes need no wake: a worker looks when a slot comes free.
                let is_first = state.lanes.is_empty();
                let nth = state.lanes.next();
                enqueue(&mut state.lanes, Waiting { what: what(), bytes, nth, reply, _room: room });
                if is_first || state.slots.is_free(clock::now()) {
                    self.wake.notify_one();
                }
            }
            is_open
        };
        if is_enqueued {
            match answered.await {
                Ok(Ok(Some(answered))) => return Ok(answer(answered)),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                // The worker ended with its pod while the statement was under way.
                Err(_) => return Err(ended()),
            }
        }
        let _permit = acquire(&self.alone, 1).await?;
        alone.await
    }

    /// Waits until a worker should look for a group. Cancel safe.
    async fn is_wanted(&self) {
        let woken = self.wake.notified();
        match self.free_at() {
            None => woken.await,
            Some(at) => {
                let wait = at.saturating_sub(clock::now());
                // Whichever comes first.
                let _ = tokio::time::timeout(wait, woken).await;
            }
        }
    }

    /// When a slot comes free by itself, for writes that wait for it.
    fn free_at(&self) -> Option<Moment> {
        let state = self.state();
        if state.lanes.is_empty() { None } else { state.slots.free_at(clock::now()) }
    }

    /// The pod has ended, and no worker follows: the writes that wait, and those that come, are made alone.
    fn close(&self) {
        let lanes = {
            let mut state = self.state();
            state.is_closed = true;
            std::mem::take(&mut state.lanes)
        };
        lanes.release();
    }
}

/// The permits, in the order of the calls. The semaphores of a writer are never closed.
async fn acquire(of: &Arc<Semaphore>, permits: u32) -> Result<OwnedSemaphorePermit> {
    Arc::clone(of).acquire_many_owned(permits).await.map_err(|_| ended())
}

fn ended() -> Error {
    Error::new(ErrorKind::Stopped, "the pod has ended, and its writer with it")
        .done_before()
        .state("the write was perhaps made")
        .help("look at the run's row")
}

#[cfg(test)]
mod tests;
