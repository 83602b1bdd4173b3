//! The handle of a reader that is attached to a run's stream.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::Stream;
use tokio::sync::oneshot;

use super::event::StreamEvent;
use super::large::{Large, SharedPage};
use super::readers::Seat;
use crate::error::{Error, ErrorKind, Result};
use crate::id::RunId;
use crate::protocol::state::RunState;
use crate::protocol::stream::{EndMark, Position, Seen, catch_up, knows_the_end};
use crate::runs::engine::Engine;
use crate::store::runs;
use crate::store::streams;

/// The place of a reader in a stream. A reader that attaches at a position does not get what was read before it.
///
/// The reference pod's streams send the position, as text, as the id of each event. Treat it as opaque. The end has a
/// position of its own: a reader that attaches after the end gets nothing more, unless the run goes on after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPosition(Seen);

impl StreamPosition {
    /// Before the first chunk.
    pub const START: Self = Self(Seen::NOTHING);
}

impl fmt::Display for StreamPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for StreamPosition {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self).map_err(|()| {
            Error::new(ErrorKind::InvalidInput, format!("{text:?} is no position in a stream"))
                .state("nothing was attached")
                .help("give the id of the last event that was seen, or none")
        })
    }
}

/// A reader that is attached to a run's stream. The run may be on any pod. Dropping it detaches the reader and frees
/// everything.
///
/// It asks the database only when [`Attached::next`] is called and the events that it has already were returned. So a
/// slow reader costs one page of chunks (at most 2,048, and 256 KiB and a chunk), and delays nobody.
#[must_use]
pub struct Attached {
    engine: Arc<Engine>,
    run_id: RunId,
    seat: Seat,
    /// The position from which it asks next, after the events in `ready`.
    asks_from: Position,
    /// `asks_from` is the end of the stream, as far as the last query showed it.
    has_all: bool,
    ready: VecDeque<Ready>,
    seen: Seen,
    answer: Option<oneshot::Receiver<Result<SharedPage>>>,
    ended: bool,
    /// Whether the reader waits while its pod is cut off. `None`: nobody has chosen yet.
    waits: Option<bool>,
}

impl Attached {
    /// Attaches after `position`.
    pub(crate) async fn new(engine: Arc<Engine>, run_id: RunId, position: StreamPosition) -> Result<Self> {
        let seat = engine.readers.sit(run_id);
        let StreamPosition(seen) = position;
        let mut attached = Self {
            engine,
            run_id,
            seat,
            asks_from: seen.position,
            has_all: false,
            ready: VecDeque::new(),
            seen,
            answer: None,
            ended: false,
            waits: None,
        };
        let db = &attached.engine.db;
        let is_there = if seen.end.is_some() {
            // Asks at once whether the stream is over for this reader, so that `is_over` can say so.
            let page = streams::pages(db, &[(run_id, seen.position)], streams::LOOK_BYTES).await?.pop().flatten();
            let page = page.map(|page| attached.engine.readers.large.share(run_id, page));
            page.map(|page| attached.take(page)).is_some()
        } else {
            runs::status(db, run_id).await?.is_some()
        };
        if is_there { Ok(attached) } else { Err(gone(run_id)) }
    }

    /// The run.
    #[must_use]
    pub fn run_id(&self) -> RunId {
        self.run_id
    }

    /// The reader's position after the last event that it returned. If this ends without [`StreamEvent::End`], attach
    /// again from here.
    #[must_use]
    pub fn position(&self) -> StreamPosition {
        StreamPosition(self.seen)
    }

    /// True if no event will come: every event was returned, or the reader attached after the end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.ended && self.ready.is_empty()
    }

    /// Sets whether the reader waits while its pod is cut off from the database. By default it waits. With false,
    /// [`Attached::next`] fails with [`ErrorKind::Detached`] once the pod has lost its lock and no ping of it was
    /// answered for `self_fence`. Events that the reader already has are returned first.
    ///
    /// Use false for readers that can attach to another pod from [`Attached::position`]. `podlock::http::sse` uses
    /// false for a reader on which this was not called.
    pub fn wait_while_cut_off(mut self, waits: bool) -> Self {
        self.waits = Some(waits);
        self
    }

    /// The same, unless the choice was made before.
    #[cfg(feature = "http")]
    pub(crate) fn wait_while_cut_off_by_default(mut self, waits: bool) -> Self {
        self.waits.get_or_insert(waits);
        self
    }

    /// Waits for the next event. Returns `None` once the run has ended and every event was returned.
    ///
    /// While the database cannot be reached, the call waits, unless [`Attached::wait_while_cut_off`] says otherwise.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stopped`] if this pod has ended. [`ErrorKind::Detached`] if the pod is cut off and the reader must
    /// not wait: attach to another pod from [`Attached::position`]. [`ErrorKind::NotFound`] if the run was deleted
    /// meanwhile. Other errors come from the server.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: an event counts as seen only when it is returned.
    pub async fn next(&mut self) -> Result<Option<StreamEvent>> {
        Ok(self.next_shared().await?.map(|(event, _)| event))
    }

    /// The same, with the shared form of a large chunk.
    pub(crate) async fn next_shared(&mut self) -> Result<Option<(StreamEvent, Option<Arc<Large>>)>> {
        loop {
            if let Some(Ready { event, position, large }) = self.ready.pop_front() {
                self.seen = position;
                return Ok(Some((event, large)));
            }
            if self.ended {
                return Ok(None);
            }
            self.look().await?;
        }
    }

    /// Returns the same events as a stream. The stream ends after [`StreamEvent::End`], or after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<(StreamEvent, StreamPosition)>> + Send {
        futures_util::stream::unfold(Some(self), |attached| async {
            let mut attached = attached?;
            match attached.next().await {
                Ok(Some(event)) => {
                    let position = attached.position();
                    Some((Ok((event, position)), Some(attached)))
                }
                Ok(None) => None,
                Err(e) => Some((Err(e), None)),
            }
        })
    }

    async fn look(&mut self) -> Result<()> {
        let (engine, seat) = (&self.engine, self.seat);
        let (run_id, from, has_all) = (self.run_id, self.asks_from, self.has_all);
        let answer = self.answer.get_or_insert_with(|| engine.readers.ask(seat, run_id, from, has_all));
        let page = tokio::select! {
            biased;
            page = &mut *answer => page,
            // The question to the loop of `readers` stays open. A later call waits for the same answer.
            () = engine.member.cut_off(), if self.waits == Some(false) => return Err(cut_off(engine, run_id)),
        };
        self.answer = None;
        let page = page.map_err(|_| {
            Error::new(ErrorKind::Stopped, format!("pod {}: it has ended", self.engine.member.pod_id))
                .about_run(run_id)
                .state("the run goes on, or was taken over")
                .help("attach to another pod, from the position that was reached")
        })??;
        self.take(page);
        Ok(())
    }

    fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.engine.readers.need_no_more(self.run_id);
        }
    }

    fn take(&mut self, SharedPage { page, large }: SharedPage) {
        let end = EndMark::new(&page.state, page.fence.get());
        let has_ended = !RunState::Running.is(&page.state);
        let asked = Seen { position: self.asks_from, end: self.seen.end };
        if has_ended && knows_the_end(&asked, &page.facts, end) {
            self.end();
            return;
        }
        let (mut at, taken_back) = catch_up(self.asks_from, &page.facts);
        if let Some(from) = taken_back {
            let reset = StreamEvent::Reset { generation: at.generation, from_seq: from.unsigned_abs() };
            self.ready.push_back(Ready { event: reset, position: seen(at), large: None });
        }
        let generation = at.generation;
        for (chunk, large) in page.chunks.into_iter().zip(large) {
            (at.next, at.fence) = (chunk.seq + 1, chunk.fence.get());
            let (seq, fence, body) = (chunk.seq.unsigned_abs(), chunk.fence, chunk.body);
            let event = StreamEvent::Chunk { generation, seq, fence, body };
            self.ready.push_back(Ready { event, position: seen(at), large });
        }
        if has_ended && at.next >= page.facts.next {
            self.end();
            let event = StreamEvent::End { state: page.state.into(), error: page.error };
            let position = Seen { position: at, end: Some(end) };
            self.ready.push_back(Ready { event, position, large: None });
        }
        (self.asks_from, self.has_all) = (at, at.next >= page.facts.next);
    }
}

/// An event that has not been returned yet, and the reader's position after it.
struct Ready {
    event: StreamEvent,
    position: Seen,
    large: Option<Arc<Large>>,
}

fn seen(position: Position) -> Seen {
    Seen { position, end: None }
}

pub(super) fn gone(run_id: RunId) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no run {run_id}"))
        .about_run(run_id)
        .state("nothing was attached")
        .help("look for it with `podlock runs list`; runs that ended long ago are deleted")
}

pub(crate) fn cut_off(engine: &Engine, run_id: RunId) -> Error {
    let silent = engine.member.silent_for();
    Error::new(
        ErrorKind::Detached,
        format!("pod {} is cut off from the database, for {silent:.1?} by now", engine.member.pod_id),
    )
    .about_run(run_id)
    .state("the reader has what was handed to it; the run goes on, here or elsewhere")
    .help("attach to another pod, from the position that was reached")
}

impl Drop for Attached {
    fn drop(&mut self) {
        if !self.ended {
            self.engine.readers.need_no_more(self.run_id);
        }
        self.engine.readers.leave(self.seat);
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached")
            .field("run_id", &self.run_id)
            .field("position", &self.position())
            .finish_non_exhaustive()
    }
}
