//! Queries for the chunks that the readers of this pod wait for. One statement queries for all of them. Readers that are
//! awake are queried for again and again (`protocol::awake`), the others when a notice asks for it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::attach::gone;
use super::readers::{Seat, is_news};
use crate::background::part::{Next, Part};
use crate::backoff::Backoff;
use crate::id::RunId;
use crate::membership::clock;
use crate::protocol::state::RunState;
use crate::protocol::stream::Position;
use crate::runs::engine::Engine;
use crate::runs::run::{RETRY_MAX, RETRY_MIN, waits_for_it};
use crate::store::streams::{self, Page};

/// How long a chunk whose notification was lost may stay unseen: all readers are queried for at least this often. A
/// shorter time would load the database without need.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);
/// The same period while no session listens for notifications.
const LOOK_WITHOUT: Duration = Duration::from_millis(100);
/// Queries for the readers until the pod ends. The readers of a query that is still in progress then get no answer from
/// it.
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
        // Together with those that were marked for another reason.
        readers.stir_due(clock::now());
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

    /// The readers of runs with news stay awake. This happens before the readers are answered, because a reader that
    /// has all chunks asks again at once. Runs of this pod need no further reads: the flusher tells their readers.
    fn note_news<'a>(&self, found: impl Iterator<Item = ((RunId, Position), &'a Option<Page>)>) {
        let Engine { readers, registry, .. } = &*self.engine;
        let has_news = |page: &Page, position| is_news(page, position) && RunState::Running.is(&page.state);
        let news = found.filter(|((run_id, position), page)| {
            page.as_ref().is_some_and(|page| has_news(page, *position)) && registry.fence_of(*run_id).is_none()
        });
        let news: Vec<RunId> = news.map(|((run_id, _), _)| run_id).collect();
        readers.note_news(news.into_iter(), clock::now());
    }
}

impl Part for Looking {
    const NAME: &'static str = "the readers of streams";

    async fn woken(&mut self) {
        while !self.engine.readers.has_fresh() {
            let anyway = self.anyway();
            let readers = &self.engine.readers;
            let (now, due) = (clock::now(), readers.look_due());
            let wait = due.map(|due| due.saturating_sub(now));
            tokio::select! {
                biased;
                () = readers.asked.notified() => {}
                _ = self.listening.changed() => readers.stir_all(),
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => readers.stir_due(clock::now()),
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
        let began = clock::now();
        let found = streams::pages(&self.engine.db, &wanted, self.bytes).await;
        readers.note_read(began, clock::now());
        match found {
            Ok(pages) => {
                (self.bytes, self.most) = ((self.bytes * 2).min(streams::LOOK_BYTES), self.most.saturating_mul(2));
                self.note_news(wanted.iter().copied().zip(&pages));
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
