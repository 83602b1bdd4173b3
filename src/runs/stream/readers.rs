//! The readers of a pod. Each asks for events after its position and waits. One statement queries for all of them. A
//! slow reader does not ask, so nothing is buffered for it, and writers do not know of it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::large::{LargeChunks, SharedPage};
use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind, Result};
use crate::id::RunId;
use crate::pg::session::Opener;
use crate::protocol::notices::{Heard, group};
use crate::protocol::state::RunState;
use crate::protocol::stream::Position;
use crate::runs::engine::Engine;
use crate::runs::run::{RETRY_MAX, RETRY_MIN, waits_for_it};
use crate::store::listener::Listener;
use crate::store::role::Role;
use crate::store::streams;

/// How long a chunk whose notification was lost may stay unseen: all readers are queried for at least this often. A
/// shorter time would load the database without need.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);
/// The same while there is no session that listens.
const LOOK_WITHOUT: Duration = Duration::from_millis(100);
/// How long the session collects notifications after it acted on some. Longer would delay chunks. Shorter would query
/// more often for nothing: each pod notifies at most once in 21 ms, and each run has one pod.
const HEAR_AGAIN: Duration = Duration::from_millis(10);
/// How long the session stays open after the last reader has gone. The next reader may come soon.
const LINGER: Duration = Duration::from_secs(5);
/// The most readers for which one statement queries.
const LOOK_FOR: usize = 256;

/// The number of a reader among the readers of this pod.
pub(super) type Seat = u64;

/// The readers that are attached on this pod.
pub(crate) struct Readers {
    /// Readers, the flusher and the two loops in [`run`] write and read it. Never held across an await.
    seats: Mutex<Seats>,
    /// Notified when a reader must be queried for. Wakes the loop in `looks`.
    asked: Notify,
    /// How many readers are attached. Readers change it. The loop in `listens` is woken, and opens or closes its
    /// session.
    count: watch::Sender<usize>,
    /// Whether the listening session is open, so that notifications arrive. The loop in `listens` sets it. The loop in
    /// `looks` is woken, and queries more often without a session.
    listening: watch::Sender<bool>,
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
    fn hear(&self, heard: &Heard) {
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
pub(crate) async fn run(engine: Arc<Engine>, opener: Opener) {
    tokio::select! {
        biased;
        () = engine.member.root.cancelled() => {}
        () = looks(&engine) => {}
        () = listens(&engine, &opener) => {}
    }
    engine.readers.close();
}

async fn looks(engine: &Engine) {
    let readers = &engine.readers;
    let mut listening = readers.listening.subscribe();
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    let mut looked_anyway = Instant::now();
    // The bytes and places that one statement reads. Both shrink after a statement that did not end in time.
    let (mut bytes, mut most) = (streams::LOOK_BYTES, usize::MAX);
    loop {
        let anyway = looked_anyway + if *listening.borrow() { LOOK_ANYWAY } else { LOOK_WITHOUT };
        // This happens however busy the loop is, because some changes send no notification.
        if Instant::now() >= anyway {
            readers.stir_all();
            looked_anyway = Instant::now();
        }
        let fresh = readers.fresh();
        if fresh.is_empty() {
            tokio::select! {
                biased;
                () = readers.asked.notified() => {}
                _ = listening.changed() => readers.stir_all(),
                () = tokio::time::sleep_until(anyway), if *readers.count.borrow() > 0 => {}
            }
            continue;
        }
        // Readers at the same place of the same run are queried for once.
        let mut places: HashMap<(RunId, Position), Vec<Seat>> = HashMap::new();
        let mut later = Vec::new();
        for (seat, run_id, position) in fresh {
            let is_full = places.len() >= most;
            match places.entry((run_id, position)) {
                Entry::Vacant(_) if is_full => later.push(seat),
                place => place.or_default().push(seat),
            }
        }
        readers.again(later.into_iter());
        let (wanted, seats): (Vec<_>, Vec<_>) = places.into_iter().unzip();
        match streams::pages(&engine.db, &wanted, bytes).await {
            Ok(pages) => {
                (bytes, most) = ((bytes * 2).min(streams::LOOK_BYTES), most.saturating_mul(2));
                backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
                for (((run_id, position), seats), page) in wanted.into_iter().zip(seats).zip(pages) {
                    let page = page.map(|page| readers.large.share(run_id, page));
                    for seat in seats {
                        readers.answer(seat, position, page.clone().ok_or_else(|| gone(run_id)));
                    }
                }
            }
            // Readers wait for the database as writers do.
            Err(e) if waits_for_it(&e) => {
                tracing::debug!(
                    target: "podlock", event = "stream_unread", places = wanted.len(), bytes, error = %e,
                    "looking again for chunks"
                );
                if e.is_slow() {
                    (bytes, most) = ((bytes / 2).max(1), most.min(wanted.len()).div_ceil(2).max(1));
                }
                readers.again(seats.into_iter().flatten());
                tokio::time::sleep(backoff.delay()).await;
            }
            Err(e) => {
                tracing::warn!(target: "podlock", event = "stream_unread", error = %e, "streams cannot be read");
                for ((_, position), seats) in wanted.into_iter().zip(seats) {
                    for seat in seats {
                        readers.answer(seat, position, Err(e.for_another()));
                    }
                }
            }
        }
    }
}

pub(super) fn gone(run_id: RunId) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no run {run_id}"))
        .about_run(run_id)
        .state("nothing was attached")
        .help("look for it with `podlock runs list`; runs that ended long ago are deleted")
}

/// Keeps a listening session open while a reader is attached, and for [`LINGER`] after that.
async fn listens(engine: &Engine, opener: &Opener) {
    let readers = &engine.readers;
    let mut count = readers.count.subscribe();
    let mut backoff = Backoff::new(RETRY_MIN, engine.member.settings.reconnect_backoff_max);
    loop {
        if count.wait_for(|count| *count > 0).await.is_err() {
            return;
        }
        match listen(opener).await {
            Ok(session) => {
                backoff = Backoff::new(RETRY_MIN, engine.member.settings.reconnect_backoff_max);
                // All waiting readers are queried for again, because notifications from before this session were not
                // heard.
                readers.listening.send_replace(true);
                hear(engine, &session, &mut count).await;
                readers.listening.send_replace(false);
                session.close().await;
            }
            Err(e) => {
                tracing::debug!(
                    target: "podlock", event = "stream_unheard", pod = %engine.member.pod_id, error = %e,
                    "no session to hear of chunks; looking for them more often"
                );
            }
        }
        tokio::time::sleep(backoff.delay()).await;
    }
}

async fn listen(opener: &Opener) -> Result<Listener> {
    let session = Listener::open(opener, Role::Stream).await?;
    streams::listen(&session).await?;
    Ok(session)
}

/// Handles notifications until the session ends, or no reader has been attached for [`LINGER`].
async fn hear(engine: &Engine, session: &Listener, count: &mut watch::Receiver<usize>) {
    let mut quiet_until = None;
    loop {
        let is_idle = *count.borrow_and_update() == 0;
        let is_quiet = quiet_until.is_some();
        let ended = session.ended();
        tokio::select! {
            biased;
            cause = ended => {
                tracing::debug!(
                    target: "podlock", event = "stream_unheard", pod = %engine.member.pod_id, cause = %cause,
                    "lost the session that hears of chunks"
                );
                return;
            }
            () = tokio::time::sleep_until(quiet_until.unwrap_or_else(Instant::now)), if is_quiet => quiet_until = None,
            heard = session.heard(), if !is_quiet => {
                engine.member.note_hint("streams");
                engine.readers.hear(&heard);
                quiet_until = Some(Instant::now() + HEAR_AGAIN);
            }
            changed = count.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LINGER), if is_idle => return,
        }
    }
}
