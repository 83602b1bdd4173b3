//! What somebody holds who is attached to a run's stream.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::Stream;
use serde::Serialize;
use tokio::sync::oneshot;

use super::readers::{Seat, gone};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Fence, RunId};
use crate::pod::shared::Shared;
use crate::postgres::runs;
use crate::postgres::streams::Page;
use crate::protocol::stream::{Position, catch_up};

/// What a reader of a run's stream is told, in this order: chunks and resets as they come, the end last.
///
/// As JSON each is an object of the fields that are named here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum StreamEvent {
    /// The next chunk: stored, and handed to this reader once.
    Chunk {
        /// Which generation of the stream it is of; the first is 1.
        generation: i32,
        /// Its number in the generation; the first is 0, and none is left out.
        seq: u64,
        /// The fence of the attempt that wrote it.
        fence: Fence,
        /// What was said.
        body: Arc<str>,
    },
    /// Chunks that this reader has were taken back: forget those from `from_seq` on. All, where `generation` is a new one.
    Reset {
        /// The generation in which the stream goes on.
        generation: i32,
        /// The number of the next chunk.
        from_seq: u64,
    },
    /// The run has ended, and this reader has all of its chunks.
    End {
        /// `succeeded`, `failed`, `cancelled` or `quarantined`.
        state: Arc<str>,
    },
}

/// Where a reader of a stream is: what it has seen before, it is not handed again.
///
/// As text it is what the reference pod's streams bear as the event's id. Take it as opaque.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPosition(Position);

impl StreamPosition {
    /// Before the first chunk.
    pub const START: Self = Self(Position::START);
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
                .left("nothing was attached")
                .todo("give the id of the last event that was seen, or none")
        })
    }
}

/// Somebody attached to a run's stream, on whatever pod the run is. Dropped, it is detached, and nothing of it is left.
///
/// It asks when [`Attached::next`] is called and what it was handed before has been taken: a reader that is slow costs one
/// page of chunks (at most 2,048, and 256 KiB and a chunk), and holds up nobody.
#[must_use]
pub struct Attached {
    shared: Arc<Shared>,
    run_id: RunId,
    seat: Seat,
    /// Where it asks from, beyond what is ready.
    asks_from: Position,
    ready: VecDeque<(StreamEvent, Position)>,
    seen: Position,
    answer: Option<oneshot::Receiver<Result<Page>>>,
    ended: bool,
}

impl Attached {
    /// Attaches after `position`.
    pub(crate) async fn new(shared: Arc<Shared>, run_id: RunId, position: StreamPosition) -> Result<Self> {
        let seat = shared.readers.sit();
        let StreamPosition(position) = position;
        let attached = Self {
            shared,
            run_id,
            seat,
            asks_from: position,
            ready: VecDeque::new(),
            seen: position,
            answer: None,
            ended: false,
        };
        if runs::standing(&attached.shared.db, run_id).await?.is_none() {
            return Err(gone(run_id));
        }
        Ok(attached)
    }

    /// The run.
    #[must_use]
    pub fn run_id(&self) -> RunId {
        self.run_id
    }

    /// Where it is, after the last event that it returned: what to attach from when this ends without [`StreamEvent::End`].
    #[must_use]
    pub fn position(&self) -> StreamPosition {
        StreamPosition(self.seen)
    }

    /// Waits for the next event. `None` once the run has ended and everything was returned.
    ///
    /// While the database cannot be reached it waits.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stopped`] if this pod has ended: attach to another from [`Attached::position`].
    /// [`ErrorKind::NotFound`] if the run was deleted meanwhile. Others as the server's.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: an event counts as seen only when it is returned.
    pub async fn next(&mut self) -> Result<Option<StreamEvent>> {
        loop {
            if let Some((event, position)) = self.ready.pop_front() {
                self.seen = position;
                return Ok(Some(event));
            }
            if self.ended {
                return Ok(None);
            }
            self.look().await?;
        }
    }

    /// The same as a stream. It ends after [`StreamEvent::End`], or after an error.
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
        let (shared, seat) = (&self.shared, self.seat);
        let (run_id, from) = (self.run_id, self.asks_from);
        let answer = self.answer.get_or_insert_with(|| shared.readers.ask(seat, run_id, from));
        let page = answer.await;
        self.answer = None;
        let page = page.map_err(|_| {
            Error::new(ErrorKind::Stopped, format!("pod {}: it has ended", self.shared.pod_id))
                .about_run(run_id)
                .left("the run goes on, or was taken over")
                .todo("attach to another pod, from the position that was reached")
        })??;
        self.take(page);
        Ok(())
    }

    fn take(&mut self, page: Page) {
        let (mut at, taken_back) = catch_up(self.asks_from, &page.facts);
        if let Some(from) = taken_back {
            let reset = StreamEvent::Reset { generation: at.generation, from_seq: from.unsigned_abs() };
            self.ready.push_back((reset, at));
        }
        let generation = at.generation;
        for chunk in page.chunks {
            (at.next, at.fence) = (chunk.seq + 1, chunk.fence.get());
            let (seq, fence, body) = (chunk.seq.unsigned_abs(), chunk.fence, chunk.body);
            self.ready.push_back((StreamEvent::Chunk { generation, seq, fence, body }, at));
        }
        if page.state != "running" && at.next >= page.facts.next {
            self.ended = true;
            self.ready.push_back((StreamEvent::End { state: page.state.into() }, at));
        }
        self.asks_from = at;
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.shared.readers.leave(self.seat);
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").field("run_id", &self.run_id).field("position", &self.seen).finish_non_exhaustive()
    }
}
