//! The writer: groups the writes of a pod's runs, so that many need few commits.
//!
//! A commit takes as long as the disk needs, however much it holds. So a pod that makes one statement for each write is
//! limited by its disk. The writer has no timer in the way of a write, and delays nothing:
//!
//! 1. If no write waits, a slot ([`crate::protocol::slots`]) is free, and few lone writes are under way, a write is
//!    sent at once, by its caller, alone.
//! 2. Otherwise it waits in the *lane* of its kind.
//! 3. When a slot comes free, a worker takes the lane that has waited longest, and sends all of its writes in one
//!    statement.
//!
//! Each caller gets the answer to its own write: it was made, or the run is no longer this attempt's, or another run
//! has the key. A group skips locked rows. If another transaction is inserting the same key, the group waits for 50 ms.
//! What a group cannot answer is made alone, which waits in the server and finds the reason. If many wait so, small
//! writes are meanwhile tried in later groups.
//!
//! * **Order.** An attempt makes its writes one after another, and each has a number (`runs::run`). A call that was
//!   dropped while its write waits leaves nothing to send. If a worker had taken the write, the number keeps it from
//!   overtaking a later one.
//! * **Lost replies.** Each caller of a group gets the error, and repeats its write under the same number, or under the
//!   same id.
//! * **Memory.** The lanes hold at most [`ROOM_KIB`] of starts, and as much of other writes. Further callers wait, in
//!   order.
//! * **Time.** A write waits for its turn no longer than a caller waits for a connection of the pool. Then it fails,
//!   and was not made. The statement itself has its own time limit.
//! * **Connections.** Writes that are made alone leave two connections of the pool to the others, if it has more.
//! * **L7.** A pod that is past its deadline sends no such write of an owner. The deadline is checked when the
//!   connection is there.
//! * **The end of the pod.** A group under way is in doubt for its callers. Writes that wait, and those that come
//!   later, are made alone. A clean stop waits for the runs first, so nothing waits then.

mod lanes;
mod send;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind, Result};
use crate::membership::clock;
use crate::protocol::Moment;
use crate::protocol::slots::{Slots, Use};
use lanes::{GROUP_MOST, Lane, Lanes};

pub(crate) use lanes::NewStart;
pub(crate) use send::Sending;

/// The most statements of the writer that are under way at a time: 3. One more commit at a time keeps the disk busy
/// while the server works on the others. With more, the groups are smaller, and the pool (4 connections by default) has
/// none left for anything else.
const STATEMENTS_MOST: usize = 3;
/// How many connections of the pool the writes that are made alone leave to others: 2. One is for groups, so that rows
/// that are locked hold no other write up. One is for claims and the like.
const LEFT_TO_OTHERS: usize = 2;
/// The room of the lanes, in KiB: 32 MiB of starts, and as much of other writes. A write takes at least one KiB of it.
/// With less, large checkpoints wait for one another. More is memory that a pod may use while the database is away.
const ROOM_KIB: u32 = 32 * 1024;
/// The least and the longest time after which a write that another transaction holds up, and that cannot be made alone,
/// is tried in a group again. Shorter ones load the server. Longer ones hold the write up after the other transaction
/// has ended.
const AGAIN_MIN: Duration = Duration::from_millis(20);
const AGAIN_MAX: Duration = Duration::from_millis(500);
/// Only writes of at most so many bytes are tried in a group again: 64 KiB. Larger ones load the network each time.
const SENT_AGAIN: usize = 64 * 1024;

/// Groups the writes of a pod's runs.
pub(crate) struct Writer {
    /// Callers and workers change it. Never held across an await.
    state: Mutex<State>,
    /// A write waits: wakes one worker. `Notify` keeps one wake while all workers are busy, and each looks again before
    /// it waits. So none is lost.
    wake: Notify,
    /// The room that is left in the lanes of starts, and in the others.
    room_of_starts: Arc<Semaphore>,
    room_of_writes: Arc<Semaphore>,
    /// The writes that may be made alone at the same time.
    alone: Arc<Semaphore>,
    /// How long a write waits for its turn, at most.
    patience: Duration,
}

struct State {
    lanes: Lanes,
    slots: Slots,
    /// The most writes of the next group of any lane. Half of those of a group that was too slow. It doubles after a
    /// group that was not.
    most: usize,
    /// The pod has ended.
    is_closed: bool,
}

/// What became of a write in a group.
#[derive(Debug)]
enum Turn<A> {
    Done(A),
    /// The group did not make it and cannot tell why. Mostly another transaction holds it up.
    HeldUp,
    /// The group failed for a reason that need not be this write's. It was rolled back.
    Failed,
}

/// A write that waits in a lane.
struct Waiting<T, A> {
    what: T,
    bytes: usize,
    /// Where it stands among the writes of all lanes.
    nth: u64,
    /// A worker has taken it. The caller cannot take it back any more.
    is_taken: Arc<AtomicBool>,
    reply: oneshot::Sender<Result<Turn<A>>>,
    _room: OwnedSemaphorePermit,
}

impl<T, A> Waiting<T, A> {
    /// Answers the caller. What the write held is free before.
    fn answer(self, answer: Result<Turn<A>>) {
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
    /// A writer over a pool with so many connections, for which a caller waits so long.
    pub(crate) fn new(connections: usize, patience: Duration) -> Arc<Self> {
        let slots = Slots::new(connections.saturating_sub(1).min(STATEMENTS_MOST));
        let room = || Arc::new(Semaphore::new(ROOM_KIB as usize));
        Arc::new(Self {
            state: Mutex::new(State { lanes: Lanes::default(), slots, most: GROUP_MOST, is_closed: false }),
            wake: Notify::new(),
            room_of_starts: room(),
            room_of_writes: room(),
            alone: Arc::new(Semaphore::new(connections.saturating_sub(LEFT_TO_OTHERS).max(1))),
            patience,
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
        let permit = self.alone()?;
        let id = state.slots.take(Use::Alone, clock::now())?;
        Some((Taken { writer: Arc::clone(self), id }, permit))
    }

    /// The permit to make a write alone, if there is one left.
    fn alone(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.alone).try_acquire_owned().ok()
    }

    /// Makes a write when its turn comes: `alone`, or as one of a group. `what` is called for a group. `bytes` is about
    /// how many bytes the write has.
    ///
    /// Cancel safe as the write itself: a dropped call was made or not.
    async fn write<T, A>(
        self: &Arc<Self>,
        room: &Arc<Semaphore>,
        bytes: usize,
        what: impl Fn() -> T,
        lane: impl Fn(&mut Lanes) -> &mut Lane<T, A>,
        alone: impl Future<Output = Result<A>>,
    ) -> Result<A> {
        if let Some(_taken) = self.at_once() {
            return alone.await;
        }
        let until = Instant::now() + self.patience;
        let mut pause = Backoff::new(AGAIN_MIN, AGAIN_MAX);
        loop {
            let Some(turn) = self.in_a_group(room, bytes, until, &what, &lane).await? else { return alone.await };
            // A later group would only be as slow, or have the same neighbour.
            let mut wait_until = until;
            match turn {
                Turn::Done(answer) => return Ok(answer),
                Turn::HeldUp if bytes <= SENT_AGAIN => wait_until = until.min(Instant::now() + pause.delay()),
                Turn::HeldUp | Turn::Failed => {}
            }
            if let Ok(_permit) = acquire(&self.alone, 1, wait_until).await {
                return alone.await;
            }
            if Instant::now() >= until {
                return Err(not_sent());
            }
        }
    }

    /// Makes a write as one of a group. `None`: the pod has ended, and nobody makes groups.
    async fn in_a_group<T, A>(
        &self,
        room: &Arc<Semaphore>,
        bytes: usize,
        until: Instant,
        what: impl Fn() -> T,
        lane: impl Fn(&mut Lanes) -> &mut Lane<T, A>,
    ) -> Result<Option<Turn<A>>> {
        let kib = u32::try_from(bytes / 1024).unwrap_or(ROOM_KIB).clamp(1, ROOM_KIB);
        let room = acquire(room, kib, until).await?;
        let (reply, mut answered) = oneshot::channel();
        let is_taken = Arc::new(AtomicBool::new(false));
        {
            let mut state = self.state();
            if state.is_closed {
                return Ok(None);
            }
            // Later writes need no wake: a worker looks when a slot comes free.
            let is_first = !state.can_take();
            let waiting = Waiting {
                what: what(),
                bytes,
                nth: state.lanes.next(),
                is_taken: Arc::clone(&is_taken),
                reply,
                _room: room,
            };
            lane(&mut state.lanes).push_back(waiting);
            if is_first || state.slots.is_free(clock::now()) {
                self.wake.notify_one();
            }
        }
        let answer = match timeout_at(until, &mut answered).await {
            Ok(answer) => answer,
            Err(_) => {
                {
                    // Under the lock, a worker either has taken the write or never will.
                    let _state = self.state();
                    if !is_taken.load(Ordering::Relaxed) {
                        answered.close();
                    }
                }
                if !is_taken.load(Ordering::Relaxed) && answered.try_recv().is_err() {
                    return Err(not_sent());
                }
                answered.await
            }
        };
        match answer {
            Ok(turn) => turn.map(Some),
            // The worker has ended with its pod. If it had taken the write, it was perhaps sent.
            Err(_) if is_taken.load(Ordering::Relaxed) => Err(ended()),
            Err(_) => Ok(None),
        }
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

    /// When a worker can take a group although nothing wakes it.
    fn free_at(&self) -> Option<Moment> {
        let (state, now) = (self.state(), clock::now());
        if !state.can_take() {
            None
        } else if state.slots.is_free(now) {
            Some(now)
        } else {
            state.slots.free_at(now)
        }
    }

    /// The pod has ended, and no worker follows: the writes that wait, and those that come, are made alone.
    fn close(&self) {
        let lanes = {
            let mut state = self.state();
            state.is_closed = true;
            std::mem::take(&mut state.lanes)
        };
        // Their callers see that nobody has taken their writes.
        drop(lanes);
    }
}

impl State {
    /// Whether a write waits that a group may have.
    fn can_take(&self) -> bool {
        self.lanes.oldest(self.slots.takes_keys()).is_some()
    }
}

/// The permits, in the order of the calls. The semaphores of a writer are never closed.
async fn acquire(of: &Arc<Semaphore>, permits: u32, until: Instant) -> Result<OwnedSemaphorePermit> {
    match timeout_at(until, Arc::clone(of).acquire_many_owned(permits)).await {
        Ok(permit) => permit.map_err(|_| ended()),
        Err(_) => Err(not_sent()),
    }
}

fn not_sent() -> Error {
    Error::new(ErrorKind::Timeout, "the write did not have its turn in time")
        .unconnected()
        .state("nothing was written")
        .help("see in pg_stat_activity what the pod's statements wait for, or raise pool_size")
}

fn ended() -> Error {
    Error::new(ErrorKind::Stopped, "the pod has ended, and its writer with it")
        .done_before()
        .state("the write was perhaps made")
        .help("look at the run's row")
}

#[cfg(test)]
mod tests;
