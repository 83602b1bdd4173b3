//! The chunks of a pod's streams that wait to be stored, and what the flusher takes from them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Stream;
use crate::id::RunId;
use crate::protocol::Moment;
use crate::runs::StopReason;
use crate::store::streams::Appended;

/// The most chunks and bytes that one statement stores. A larger batch takes longer, and is cut if it does not end in
/// time. With smaller ones a busy pod needs more statements.
const BATCH_CHUNKS: usize = 2048;
const BATCH_BYTES: usize = 1024 * 1024;

/// The streams whose chunks wait to be stored, and the runs that changed in another way.
#[derive(Default)]
pub(crate) struct Flusher {
    /// Handlers add to it, and the flusher takes from it. Never held across an await.
    queue: Mutex<Queue>,
    /// Handlers notify it, and the flusher waits for it. `Notify` keeps one wake while the flusher works, so none is
    /// lost.
    pub(super) wake: Notify,
}

#[derive(Default)]
pub(super) struct Queue {
    pub(super) streams: VecDeque<Arc<Stream>>,
    /// How many chunks the streams of the pod buffer. For a moment it may be too low, when a chunk was taken before it
    /// was counted.
    chunks: i64,
    /// Runs whose rows were changed by another statement than the flusher's, and when that statement began.
    pub(super) changed: Vec<(RunId, Moment)>,
}

impl Queue {
    fn count(&mut self, chunks: usize, sign: i64) {
        self.chunks += sign * i64::try_from(chunks).unwrap_or(i64::MAX);
    }

    pub(super) fn is_full(&self) -> bool {
        usize::try_from(self.chunks).is_ok_and(|chunks| chunks >= BATCH_CHUNKS)
    }
}

impl Flusher {
    /// A chunk was appended to `stream`. The stream is queued if `enqueue`. Wakes the flusher if the stream is new in
    /// the queue or a batch is full.
    pub(crate) fn note_appended(&self, stream: &Arc<Stream>, enqueue: bool) {
        let mut queue = self.queue();
        queue.chunks += 1;
        if enqueue {
            queue.streams.push_back(Arc::clone(stream));
        }
        let wake = enqueue || queue.is_full();
        drop(queue);
        if wake {
            self.wake.notify_one();
        }
    }

    /// The stream changed in another way, by a statement that began at `began`. Its readers must hear of that. Wakes
    /// the flusher.
    pub(crate) fn note_changed(&self, run_id: RunId, began: Moment) {
        self.queue().changed.push((run_id, began));
        self.wake.notify_one();
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a batch, from the longest waiting streams first.
    pub(super) fn take(&self) -> Batch {
        let mut batch = Batch::default();
        let (mut chunks, mut bytes) = (0, 0);
        let mut queue = self.queue();
        while chunks < BATCH_CHUNKS && bytes < BATCH_BYTES {
            let Some(stream) = queue.streams.pop_front() else { break };
            match stream.take(BATCH_CHUNKS - chunks, BATCH_BYTES - bytes) {
                Ok(None) => {}
                Ok(Some(taken)) => {
                    chunks += taken.bodies.len();
                    bytes += taken.bodies.iter().map(String::len).sum::<usize>();
                    batch.chunks.push(taken);
                    batch.streams.push(stream);
                }
                Err(dropped) => queue.count(dropped, -1),
            }
        }
        queue.count(chunks, -1);
        batch
    }

    /// Queues a stream that still has chunks. `more` of them are not counted yet.
    pub(super) fn requeue(&self, stream: Arc<Stream>, more: usize) {
        let mut queue = self.queue();
        queue.count(more, 1);
        queue.streams.push_back(stream);
    }

    pub(super) fn forget(&self, chunks: usize) {
        self.queue().count(chunks, -1);
    }
}

/// Chunks on their way to the server, and their streams.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) streams: Vec<Arc<Stream>>,
    pub(super) chunks: Vec<Appended>,
    /// When the first statement with these chunks began. It may have stored them although its reply was lost.
    pub(super) since: Option<Moment>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// L7, on the client's side: sends no chunks of runs that were told to stop and may not write any more.
    ///
    /// `all_over`: the pod is past its deadline.
    pub(super) fn drop_what_is_over(&mut self, flusher: &Flusher, all_over: bool) {
        let is_over = |stream: &Stream| {
            if all_over {
                stream.stop().fire(StopReason::SelfFenced);
            }
            stream.stop().over().is_cancelled()
        };
        self.keep(|stream| {
            let over = is_over(stream);
            if over {
                flusher.forget(stream.give_up());
            }
            !over
        });
    }

    fn keep(&mut self, keep: impl Fn(&Arc<Stream>) -> bool) {
        let (streams, chunks) = (std::mem::take(&mut self.streams), std::mem::take(&mut self.chunks));
        for (stream, chunks) in streams.into_iter().zip(chunks).filter(|(stream, _)| keep(stream)) {
            self.streams.push(stream);
            self.chunks.push(chunks);
        }
    }

    pub(super) fn is_one_chunk(&self) -> bool {
        matches!(self.chunks.as_slice(), [one] if one.bodies.len() <= 1)
    }

    /// Keeps the first half of the chunks of the batch's only stream, and returns the others to the stream.
    pub(super) fn halve(&mut self, flusher: &Flusher) {
        let (Some(stream), Some(chunks)) = (self.streams.first(), self.chunks.first_mut()) else { return };
        let rest = chunks.bodies.split_off(chunks.bodies.len().div_ceil(2));
        flusher.queue().count(rest.len(), 1);
        stream.take_back(rest);
    }

    /// Splits into one batch per stream.
    pub(super) fn apart(self) -> impl Iterator<Item = Self> {
        let since = self.since;
        let one = move |(stream, chunks)| Self { streams: vec![stream], chunks: vec![chunks], since };
        self.streams.into_iter().zip(self.chunks).map(one)
    }
}
