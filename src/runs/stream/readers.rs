//! The readers of a pod. Each asks for events after its position and waits. One statement queries for all of them. A
//! slow reader does not ask, so nothing is buffered for it, and writers do not know of it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot, watch};

use super::large::{LargeChunks, SharedPage};
use crate::error::Result;
use crate::id::RunId;
use crate::protocol::Moment;
use crate::protocol::awake::Looks;
use crate::protocol::notices::{Heard, group};
use crate::protocol::state::RunState;
use crate::protocol::stream::Position;
use crate::store::streams::Page;

/// The most readers for which one statement queries. More would make the statement, and its answer, so large that
/// every reader waits for the slowest; fewer would cost a round trip more for a pod with hundreds of readers.
const LOOK_FOR: usize = 256;

/// The number of a reader among the readers of this pod.
pub(super) type Seat = u64;

/// The readers that are attached on this pod.
pub(crate) struct Readers {
    /// Readers, the flusher, `super::looking` and the listening session write and read it. Never held across an await.
    seats: Mutex<Seats>,
    /// Notified when a reader must be queried for, or when that may be due at another time than before. Wakes
    /// `super::looking`.
    pub(super) asked: Notify,
    /// How many readers are attached. Readers change it. A change wakes `super::listening`, which opens or closes its
    /// session, and says which runs are read here.
    pub(super) count: watch::Sender<usize>,
    /// Whether the listening session is open, so that notifications arrive. `super::listening` sets it. A change wakes
    /// `super::looking`, which queries more often without a session.
    pub(super) listening: watch::Sender<bool>,
    /// Large chunks that several readers share.
    pub(super) large: Arc<LargeChunks>,
    /// The number by which this process knows its own notices.
    by: u32,
}

#[derive(Default)]
struct Seats {
    next: Seat,
    /// `waiting` has the readers that wait. `fresh` has, in order, those that must be queried for; some of these may
    /// have gone.
    waiting: HashMap<Seat, Waiting>,
    fresh: VecDeque<Seat>,
    by_run: HashMap<RunId, HashSet<Seat>>,
    /// How many readers of each run are attached and need more, whether they wait or not.
    attached: HashMap<RunId, usize>,
    /// The runs for which another read is due by itself.
    looks: Looks,
    /// The pod has ended. No reader is queried for any more.
    closed: bool,
}

struct Waiting {
    run_id: RunId,
    position: Position,
    reply: oneshot::Sender<Result<SharedPage>>,
    /// The reader is in `Seats::fresh`.
    fresh: bool,
}

impl Default for Readers {
    fn default() -> Self {
        Self {
            seats: Mutex::default(),
            asked: Notify::new(),
            count: watch::channel(0).0,
            listening: watch::channel(false).0,
            large: Arc::default(),
            by: fastrand::u32(1..),
        }
    }
}

impl Readers {
    pub(super) fn sit(&self, run_id: RunId) -> Seat {
        let mut seats = self.seats();
        seats.next += 1;
        let seat = seats.next;
        *seats.attached.entry(run_id).or_default() += 1;
        drop(seats);
        self.count.send_modify(|count| *count += 1);
        self.asked.notify_one();
        seat
    }

    /// The reader has gone. Removes everything of it.
    pub(super) fn leave(&self, seat: Seat) {
        self.seats().remove(seat);
        self.count.send_modify(|count| *count -= 1);
    }

    /// One of the readers of this run has gone, or has everything.
    pub(super) fn need_no_more(&self, run_id: RunId) {
        let mut seats = self.seats();
        if let Some(count) = seats.attached.get_mut(&run_id) {
            *count -= 1;
            if *count == 0 {
                seats.attached.remove(&run_id);
                seats.looks.forget(run_id);
            }
        }
    }

    /// The runs that have readers here.
    pub(super) fn attached(&self) -> BTreeSet<RunId> {
        self.seats().attached.keys().copied().collect()
    }

    /// Asks for events after `position`. The answer comes when there are some. No answer comes once the pod has ended.
    ///
    /// `has_all`: the reader has everything that the last query found. If another read for the run is due by itself,
    /// the reader waits for that.
    pub(super) fn ask(
        &self,
        seat: Seat,
        run_id: RunId,
        position: Position,
        has_all: bool,
    ) -> oneshot::Receiver<Result<SharedPage>> {
        let (reply, answer) = oneshot::channel();
        let mut seats = self.seats();
        if seats.closed {
            return answer;
        }
        let fresh = !has_all || !seats.looks.is_awake(run_id);
        seats.waiting.insert(seat, Waiting { run_id, position, reply, fresh });
        if fresh {
            seats.fresh.push_back(seat);
        }
        seats.by_run.entry(run_id).or_default().insert(seat);
        drop(seats);
        if fresh {
            self.asked.notify_one();
        }
        answer
    }

    /// The readers of these runs on this pod are awake from now on.
    pub(super) fn note_news(&self, runs: impl Iterator<Item = RunId>, now: Moment) {
        let mut seats = self.seats();
        for run_id in runs {
            if seats.attached.contains_key(&run_id) {
                seats.looks.note_news(run_id, now);
            }
        }
        drop(seats);
        self.asked.notify_one();
    }

    /// A query for readers has ended.
    pub(super) fn note_read(&self, began: Moment, ended: Moment) {
        self.seats().looks.note_read(began, ended);
    }

    /// When a read is due although nothing was heard.
    pub(super) fn look_due(&self) -> Option<Moment> {
        self.seats().looks.due()
    }

    /// Marks the waiting readers for which a read is due by itself.
    pub(super) fn stir_due(&self, now: Moment) {
        let due = self.seats().looks.take(now);
        self.stir(due.iter());
    }

    /// There may be events for the readers of these runs.
    pub(crate) fn stir<'a>(&self, runs: impl Iterator<Item = &'a RunId>) {
        let mut seats = self.seats();
        let of_run: Vec<Seat> = runs.filter_map(|run_id| seats.by_run.get(run_id)).flatten().copied().collect();
        let wake = of_run.into_iter().filter(|seat| seats.refresh(*seat)).count() > 0;
        drop(seats);
        if wake {
            self.asked.notify_one();
        }
    }

    pub(super) fn stir_all(&self) {
        let mut seats = self.seats();
        let all: Vec<Seat> = seats.waiting.keys().copied().collect();
        all.into_iter().for_each(|seat| _ = seats.refresh(seat));
        drop(seats);
        self.asked.notify_one();
    }

    /// The number that this process puts into its notices.
    pub(crate) fn by(&self) -> u32 {
        self.by
    }

    /// Marks the readers whose run's group is in a notice, so that they are queried for.
    pub(super) fn hear(&self, heard: &Heard) {
        // This process has already marked its own readers.
        let mut told = heard.told.iter().filter(|told| told.by != self.by);
        if heard.all || told.clone().any(|told| told.groups.is_none()) {
            return self.stir_all();
        }
        let read: Vec<RunId> = self.seats().by_run.keys().copied().collect();
        let groups: HashSet<u16> = told.by_ref().flat_map(|told| told.groups.iter().flatten().copied()).collect();
        if !groups.is_empty() {
            self.stir(read.iter().filter(|run| groups.contains(&group(**run))));
        }
    }

    /// Takes readers that must be queried for, the longest waiting first, at most [`LOOK_FOR`].
    pub(super) fn fresh(&self) -> Vec<(Seat, RunId, Position)> {
        let mut seats = self.seats();
        let mut found = Vec::new();
        while found.len() < LOOK_FOR {
            let Some(seat) = seats.fresh.pop_front() else { break };
            if let Some(waiting) = seats.waiting.get_mut(&seat).filter(|waiting| waiting.fresh) {
                // A later event marks the reader again.
                waiting.fresh = false;
                found.push((seat, waiting.run_id, waiting.position));
            }
        }
        found
    }

    /// Whether a reader must be queried for.
    pub(super) fn has_fresh(&self) -> bool {
        let mut seats = self.seats();
        while let Some(seat) = seats.fresh.front() {
            if seats.waiting.get(seat).is_some_and(|waiting| waiting.fresh) {
                return true;
            }
            seats.fresh.pop_front();
        }
        false
    }

    pub(super) fn again(&self, seats_again: impl Iterator<Item = Seat>) {
        let mut seats = self.seats();
        seats_again.for_each(|seat| _ = seats.refresh(seat));
    }

    /// Answers the reader if `page` has something new. Otherwise the reader keeps waiting.
    pub(super) fn answer(&self, seat: Seat, position: Position, page: Result<SharedPage>) {
        let mut seats = self.seats();
        if seats.waiting.get(&seat).is_none_or(|waiting| waiting.position != position) {
            return;
        }
        if page.as_ref().is_ok_and(|shared| !is_news(&shared.page, position)) {
            return;
        }
        if let Some(waiting) = seats.remove(seat) {
            // A reader that has gone needs no answer.
            let _ = waiting.reply.send(page);
        }
    }

    pub(super) fn close(&self) {
        let mut seats = self.seats();
        let left = std::mem::take(&mut *seats);
        seats.closed = true;
        drop(seats);
        drop(left);
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `page` has something that a reader at `position` does not know.
pub(super) fn is_news(page: &Page, position: Position) -> bool {
    let here = (position.generation, position.resets, position.next);
    !page.chunks.is_empty()
        || !RunState::Running.is(&page.state)
        || page.facts.differs_from.is_some()
        || here != (page.facts.generation, page.facts.resets, page.facts.next)
}

impl Seats {
    /// Marks a waiting reader, so that it is queried for. Returns false if it is marked already, or does not wait.
    fn refresh(&mut self, seat: Seat) -> bool {
        let Some(waiting) = self.waiting.get_mut(&seat).filter(|waiting| !waiting.fresh) else { return false };
        waiting.fresh = true;
        self.fresh.push_back(seat);
        true
    }

    fn remove(&mut self, seat: Seat) -> Option<Waiting> {
        let waiting = self.waiting.remove(&seat)?;
        if let Some(of_run) = self.by_run.get_mut(&waiting.run_id) {
            of_run.remove(&seat);
            if of_run.is_empty() {
                self.by_run.remove(&waiting.run_id);
            }
        }
        Some(waiting)
    }
}
