//! The writer: groups the writes of a pod's runs, so that many need few commits.
//!
//! A commit takes as long as the disk needs, however much it holds. So a pod that makes one statement for each write is
//! limited by its disk. The writer works without a timer and delays nothing:
//!
//! 1. A write that finds a free *slot* is sent at once, by its caller. There are [`SLOTS`] slots, and each stands for a
//!    statement under way.
//! 2. A write that finds none waits in the *lane* of its kind.
//! 3. When a statement ends, its slot comes free. A worker takes the lane that has waited longest, and sends all of its
//!    writes in one statement.
//!
//! Each caller gets the answer to its own write. What a group cannot answer, its caller asks alone, as if there were no
//! group: the row is locked by another transaction, the statement failed because of one row, or a start was not inserted.
//! So a write waits for a foreign lock only by itself, and gives its slot back after [`SLOT_MOST`].
//!
//! * **Order.** An attempt makes its writes one after another, and each has a number (`runs::run`). A call that was
//!   dropped leaves a write in its lane. The worker does not send it, unless it was sent already. Then the number keeps
//!   it from overtaking.
//! * **Lost replies.** Each caller of a group gets the error, and repeats its write under the same number, or under the
//!   same id.
//! * **Memory.** The lanes hold at most [`ROOM_KIB`]. Further callers wait, in order.
//! * **L7.** A pod that is past its deadline sends no waiting write of an owner.

mod lanes;
mod send;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::{Error, ErrorKind, Result};
use lanes::Lanes;

pub(crate) use lanes::{NewStart, Release};
pub(crate) use send::Writing;

/// The most statements of the writer that are under way at a time: 3. One more commit at a time keeps the disk busy while
/// the server works on the others. With more, the groups are smaller, and the pool (4 connections by default) has none
/// left for anything else.
const SLOTS: usize = 3;
/// After this time a write alone gives its slot to others, while it waits on: 20 ms. It waits for a lock then, or the
/// server is slow. Shorter: a slow disk makes the groups smaller. Longer: three locked runs hold all others up for as
/// long.
const SLOT_MOST: Duration = Duration::from_millis(20);
/// The room of the lanes, in KiB: 64 MiB. A write takes at least one KiB of it. With less, large checkpoints wait for one
/// another. More is memory that a pod may use while the database is away.
const ROOM_KIB: u32 = 64 * 1024;

/// Groups the writes of a pod's runs.
pub(crate) struct Writer {
    /// Callers and workers change it. Never held across an await.
    state: Mutex<State>,
    /// A write has come, or a slot is free and writes wait: wakes one worker. `Notify` keeps one wake while all workers
    /// are busy, and each looks again before it waits. So none is lost.
    wake: Notify,
    /// The room of the lanes that is left.
    room: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    lanes: Lanes,
    /// How many statements are under way.
    under_way: usize,
}

/// The answer to a write that waited for its turn.
enum Turn<A> {
    Answered(A),
    /// The caller makes the write alone. It has the slot, if the write was never sent.
    Alone(Option<Slot>),
}

/// A write that waits in a lane.
struct Waiting<T, A> {
    what: T,
    bytes: usize,
    /// Where it stands among the writes of all lanes.
    nth: u64,
    reply: oneshot::Sender<Result<Turn<A>>>,
    _room: OwnedSemaphorePermit,
}

/// A statement under way. The slot is free again when it is dropped.
struct Slot(Arc<Writer>);

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way = state.under_way.saturating_sub(1);
        let is_wanted = !state.lanes.is_empty();
        drop(state);
        if is_wanted {
            self.0.wake.notify_one();
        }
    }
}

impl Writer {
    pub(crate) fn new() -> Arc<Self> {
        let room = Arc::new(Semaphore::new(ROOM_KIB as usize));
        Arc::new(Self { state: Mutex::default(), wake: Notify::new(), room })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot, if one is free and no write waits.
    fn slot(self: &Arc<Self>) -> Option<Slot> {
        let mut state = self.state();
        if state.under_way >= SLOTS || !state.lanes.is_empty() {
            return None;
        }
        state.under_way += 1;
        Some(Slot(Arc::clone(self)))
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
        if let Some(slot) = self.slot() {
            return with_slot(slot, alone).await;
        }
        let kib = u32::try_from(bytes / 1024).unwrap_or(ROOM_KIB).clamp(1, ROOM_KIB);
        let room = Arc::clone(&self.room).acquire_many_owned(kib).await.map_err(|_| ended())?;
        let (reply, answered) = oneshot::channel();
        {
            let mut state = self.state();
            let nth = state.lanes.next();
            enqueue(&mut state.lanes, Waiting { what: what(), bytes, nth, reply, _room: room });
            // Otherwise the slot that comes free next wakes a worker.
            let is_free = state.under_way < SLOTS;
            drop(state);
            if is_free {
                self.wake.notify_one();
            }
        }
        match answered.await {
            Ok(turn) => match turn? {
                Turn::Answered(answered) => Ok(answer(answered)),
                Turn::Alone(Some(slot)) => with_slot(slot, alone).await,
                Turn::Alone(None) => alone.await,
            },
            // The worker ended with its pod, perhaps while the statement was under way.
            Err(_) => Err(ended().done_before()),
        }
    }
}

/// Makes a write alone. If it takes long, others get the slot meanwhile.
async fn with_slot<R>(slot: Slot, alone: impl Future<Output = R>) -> R {
    tokio::pin!(alone);
    tokio::select! {
        biased;
        done = &mut alone => return done,
        () = tokio::time::sleep(SLOT_MOST) => {}
    }
    drop(slot);
    alone.await
}

fn ended() -> Error {
    Error::new(ErrorKind::Stopped, "the pod has ended, and its writer with it").state("the write was perhaps not made")
}
