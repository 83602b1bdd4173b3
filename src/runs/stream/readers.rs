//! The readers of a pod. Each asks for events after its position and waits. One statement queries for all of them. A
//! slow reader does not ask, so nothing is buffered for it, and writers do not know of it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::large::{LargeChunks, SharedPage};
use crate::background::part::{Next, Part};
use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind, Result};
use crate::id::RunId;
use crate::protocol::notices::{Heard, group};
use crate::protocol::state::RunState;
use crate::protocol::stream::Position;
use crate::runs::engine::Engine;
use crate::runs::run::{RETRY_MAX, RETRY_MIN, waits_for_it};
use crate::store::streams;

/// How long a chunk whose notification was lost may stay unseen: all readers are queried for at least this often. A
/// shorter time would load the database without need.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);
/// The same while there is no session that listens.
const LOOK_WITHOUT: Duration = Duration::from_millis(100);
/// The most readers for which one statement queries.
const LOOK_FOR: usize = 256;

/// The number of a reader among the readers of this pod.
pub(super) type Seat = u64;

/// The readers that are attached on this pod.
pub(crate) struct Readers {
    /// Readers, the flusher, [`Looking`] and the listening session write and read it. Never held across an await.
    seats: Mutex<Seats>,
    /// Notified when a reader must be queried for. Wakes [`Looking`].
    asked: Notify,
    /// How many readers are attached. Readers change it. A change wakes `super::listening`, which opens or closes its
    /// session.
    pub(super) count: watch::Sender<usize>,
    /// Whether the listening session is open, so that notifications arrive. `super::listening` sets it. A change wakes
    /// [`Looking`], which queries more often without a session.
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
    pub(super) fn sit(&self) -> Seat {
        let mut seats = self.seats();
        seats.next += 1;
        let seat = seats.next;
        drop(seats);
        self.count.send_modify(|count| *count += 1);
        seat
    }

    /// The reader has gone. Removes everything of it.
    pub(super) fn leave(&self, seat: Seat) {
        self.seats().remove(seat);
        self.count.send_modify(|count| *count -= 1);
    }

    /// Asks for events after `position`. The answer comes when there are some. No answer comes once the pod has ended.
    pub(super) fn ask(&self, seat: Seat, run_id: RunId, position: Position) -> oneshot::Receiver<Result<SharedPage>> {
        let (reply, answer) = oneshot::channel();
        let mut seats = self.seats();
        if seats.closed {
            return answer;
        }
        seats.waiting.insert(seat, Waiting { run_id, position, reply, fresh: true });
        seats.fresh.push_back(seat);
        seats.by_run.entry(run_id).or_default().insert(seat);
        drop(seats);
        self.asked.notify_one();
        answer
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

    fn stir_all(&self) {
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
    fn fresh(&self) -> Vec<(Seat, RunId, Position)> {
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
    fn has_fresh(&self) -> bool {
        let mut seats = self.seats();
        while let Some(seat) = seats.fresh.front() {
            if seats.waiting.get(seat).is_some_and(|waiting| waiting.fresh) {
                return true;
            }
            seats.fresh.pop_front();
        }
        false
    }

    fn again(&self, seats_again: impl Iterator<Item = Seat>) {
        let mut seats = self.seats();
        seats_again.for_each(|seat| _ = seats.refresh(seat));
    }

    /// Answers the reader if `page` has something new. Otherwise the reader keeps waiting.
    fn answer(&self, seat: Seat, position: Position, page: Result<SharedPage>) {
        let mut seats = self.seats();
        if seats.waiting.get(&seat).is_none_or(|waiting| waiting.position != position) {
            return;
        }
        let is_news = page.as_ref().map_or(true, |SharedPage { page, .. }| {
            let here = (position.generation, position.resets, position.next);
            !page.chunks.is_empty()
                || !RunState::Running.is(&page.state)
                || page.facts.differs_from.is_some()
                || here != (page.facts.generation, page.facts.resets, page.facts.next)
        });
        if !is_news {
            return;
        }
        if let Some(waiting) = seats.remove(seat) {
            // A reader that has gone needs no answer.
            let _ = waiting.reply.send(page);
        }
    }

    fn close(&self) {
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

/// Queries for the readers until the pod ends. A question that is still open then gets no answer.
pub(crate) struct Looking {
    engine: Arc<Engine>,
    listening: watch::Receiver<bool>,
    /// When all readers were last marked although nothing was heard.
    looked_anyway: Instant,
    /// The bytes and places that one statement reads. Both shrink after a statement that did not end in time.
    bytes: i64,
    most: usize,
}

/// The readers to query for. Those at the same place of the same run are queried for once.
type Places = HashMap<(RunId, Position), Vec<Seat>>;

impl Looking {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        let listening = engine.readers.listening.subscribe();
        Self { engine, listening, looked_anyway: Instant::now(), bytes: streams::LOOK_BYTES, most: usize::MAX }
    }

    /// When all readers are queried for although nothing was heard.
    fn anyway(&self) -> Instant {
        self.looked_anyway + if *self.listening.borrow() { LOOK_ANYWAY } else { LOOK_WITHOUT }
    }

    /// Takes the readers to query for. At most `most` places: readers at other places are marked again.
    fn take(&mut self) -> Places {
        let readers = &self.engine.readers;
        // This happens however busy the part is, because some changes send no notification.
        if Instant::now() >= self.anyway() {
            readers.stir_all();
            self.looked_anyway = Instant::now();
        }
        let mut places = Places::new();
        let mut later = Vec::new();
        for (seat, run_id, position) in readers.fresh() {
            let is_full = places.len() >= self.most;
            match places.entry((run_id, position)) {
                Entry::Vacant(_) if is_full => later.push(seat),
                place => place.or_default().push(seat),
            }
        }
        readers.again(later.into_iter());
        places
    }
}

impl Part for Looking {
    const NAME: &'static str = "the readers of streams";

    async fn woken(&mut self) {
        while !self.engine.readers.has_fresh() {
            let anyway = self.anyway();
            let readers = &self.engine.readers;
            tokio::select! {
                biased;
                () = readers.asked.notified() => {}
                _ = self.listening.changed() => readers.stir_all(),
                () = tokio::time::sleep_until(anyway), if *readers.count.borrow() > 0 => return,
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(RETRY_MIN, RETRY_MAX)
    }

    async fn work(&mut self) -> Next {
        let (wanted, seats): (Vec<_>, Vec<_>) = self.take().into_iter().unzip();
        if wanted.is_empty() {
            return Next::Wait;
        }
        let readers = &self.engine.readers;
        match streams::pages(&self.engine.db, &wanted, self.bytes).await {
            Ok(pages) => {
                (self.bytes, self.most) = ((self.bytes * 2).min(streams::LOOK_BYTES), self.most.saturating_mul(2));
                for (((run_id, position), seats), page) in wanted.into_iter().zip(seats).zip(pages) {
                    let page = page.map(|page| readers.large.share(run_id, page));
                    for seat in seats {
                        readers.answer(seat, position, page.clone().ok_or_else(|| gone(run_id)));
                    }
                }
                Next::Wait
            }
            // Readers wait for the database as writers do.
            Err(e) if waits_for_it(&e) => {
                tracing::debug!(
                    target: "podlock", event = "stream_unread", places = wanted.len(), bytes = self.bytes, error = %e,
                    "looking again for chunks"
                );
                if e.is_slow() {
                    let fewer = self.most.min(wanted.len()).div_ceil(2).max(1);
                    (self.bytes, self.most) = ((self.bytes / 2).max(1), fewer);
                }
                readers.again(seats.into_iter().flatten());
                Next::BackOff
            }
            Err(e) => {
                tracing::warn!(target: "podlock", event = "stream_unread", error = %e, "streams cannot be read");
                for ((_, position), seats) in wanted.into_iter().zip(seats) {
                    for seat in seats {
                        readers.answer(seat, position, Err(e.for_another()));
                    }
                }
                Next::Wait
            }
        }
    }

    fn stopped(&mut self) {
        self.engine.readers.close();
    }
}

pub(super) fn gone(run_id: RunId) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no run {run_id}"))
        .about_run(run_id)
        .state("nothing was attached")
        .help("look for it with `podlock runs list`; runs that ended long ago are deleted")
}
