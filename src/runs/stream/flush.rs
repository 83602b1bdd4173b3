//! The flusher: what the streams of a pod hold is stored by one statement at a time, and readers are told at most once
//! in a while, since a NOTIFY holds up the commits of all others for a moment.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::Stream;
use crate::backoff::Backoff;
use crate::error::Result;
use crate::id::RunId;
use crate::membership::clock;
use crate::protocol::Moment;
use crate::protocol::notices::StreamNotice;
use crate::protocol::state::RunState;
use crate::protocol::stream::{send_at, tell_at};
use crate::runs::StopReason;
use crate::runs::engine::Engine;
use crate::runs::run::{RETRY_MAX, RETRY_MIN, waits_for_it};
use crate::store::runs;
use crate::store::streams::{self, Appended, Stored, is_under_way};

/// Between two notifications, and between two statements that are not full: at most 48 of either in any second.
const GAP: Duration = Duration::from_millis(21);
/// The most that one statement stores.
const BATCH_CHUNKS: usize = 2048;
const BATCH_BYTES: usize = 1024 * 1024;

/// What waits to be stored, and whose readers wait to be told.
#[derive(Default)]
pub(crate) struct Flusher {
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Default)]
struct Queue {
    streams: VecDeque<Arc<Stream>>,
    /// How many chunks are held by the streams of the pod; for a moment fewer, where one was taken before it was
    /// counted.
    chunks: i64,
    untold: BTreeSet<RunId>,
}

impl Queue {
    fn count(&mut self, chunks: usize, sign: i64) {
        self.chunks += sign * i64::try_from(chunks).unwrap_or(i64::MAX);
    }

    fn is_full(&self) -> bool {
        usize::try_from(self.chunks).is_ok_and(|chunks| chunks >= BATCH_CHUNKS)
    }
}

impl Flusher {
    /// Something was appended to `stream`, which is to be queued if `enqueue`.
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

    /// A stream has changed in another way: its readers are told.
    pub(crate) fn note_changed(&self, run_id: RunId) {
        self.queue().untold.insert(run_id);
        self.wake.notify_one();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a batch, the longest waiting streams first.
    fn take(&self) -> Batch {
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

    /// The stream holds chunks still, of which `more` are counted anew.
    fn requeue(&self, stream: Arc<Stream>, more: usize) {
        let mut queue = self.queue();
        queue.count(more, 1);
        queue.streams.push_back(stream);
    }

    fn forget(&self, chunks: usize) {
        self.queue().count(chunks, -1);
    }
}

/// Chunks on their way, and the streams that they are of.
#[derive(Default)]
struct Batch {
    streams: Vec<Arc<Stream>>,
    chunks: Vec<Appended>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// L7, on our side of the wire: of runs that were told to stop for good nothing is sent.
    fn drop_what_is_over(&mut self, engine: &Engine) {
        let all_over = engine.member.is_past_deadline();
        let is_over = |stream: &Stream| {
            if all_over {
                stream.stop().fire(StopReason::SelfFenced);
            }
            stream.stop().over().is_cancelled()
        };
        self.keep(|stream| {
            let over = is_over(stream);
            if over {
                engine.flusher.forget(stream.give_up());
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

    fn is_one_chunk(&self) -> bool {
        matches!(self.chunks.as_slice(), [one] if one.bodies.len() <= 1)
    }

    /// Keeps the first half of the chunks of its one stream, and gives the others back to the stream.
    fn halve(&mut self, engine: &Engine) {
        let (Some(stream), Some(chunks)) = (self.streams.first(), self.chunks.first_mut()) else { return };
        let rest = chunks.bodies.split_off(chunks.bodies.len().div_ceil(2));
        engine.flusher.queue().count(rest.len(), 1);
        stream.take_back(rest);
    }

    /// Each of its streams in a batch of its own.
    fn apart(self) -> impl Iterator<Item = Self> {
        let one = |(stream, chunks)| Self { streams: vec![stream], chunks: vec![chunks] };
        self.streams.into_iter().zip(self.chunks).map(one)
    }
}

/// Stores and tells until the pod ends.
pub(crate) async fn run(engine: Arc<Engine>) {
    tokio::select! {
        biased;
        () = engine.member.root.cancelled() => {}
        () = rounds(&engine) => {}
    }
}

async fn rounds(engine: &Engine) {
    let flusher = &engine.flusher;
    let (mut sent, mut told) = (None, None);
    // What was put back is not tried again at once, however much it is.
    let mut patient = false;
    loop {
        let Some(at) = due(flusher, sent, told, patient) else {
            flusher.wake.notified().await;
            continue;
        };
        let now = clock::now();
        if at > now {
            // A batch that fills meanwhile is sent at once.
            tokio::select! {
                () = tokio::time::sleep(at - now) => {}
                () = flusher.wake.notified() => continue,
            }
        }
        let now = clock::now();
        let batch = if is_due_to_send(flusher, sent, now, patient) { flusher.take() } else { Batch::default() };
        // What is told of is stored by the same statement, or was stored before.
        let tells = tell_at(now, told, GAP) <= now;
        let untold = if tells { std::mem::take(&mut flusher.queue().untold) } else { BTreeSet::new() };
        if tells && (!untold.is_empty() || !batch.is_empty()) {
            told = Some(now);
        }
        if !batch.is_empty() {
            sent = Some(now);
        }
        patient = round(engine, batch, untold, tells).await;
    }
}

/// When the next round is; `None` while there is nothing to do.
fn due(flusher: &Flusher, sent: Option<Moment>, told: Option<Moment>, patient: bool) -> Option<Moment> {
    let now = clock::now();
    let queue = flusher.queue();
    let send = (!queue.streams.is_empty()).then(|| send_at(now, sent, queue.is_full() && !patient, GAP));
    let tell = (!queue.untold.is_empty()).then(|| tell_at(now, told, GAP));
    match (send, tell) {
        (Some(send), Some(tell)) => Some(send.min(tell)),
        (one, other) => one.or(other),
    }
}

fn is_due_to_send(flusher: &Flusher, sent: Option<Moment>, now: Moment, patient: bool) -> bool {
    let queue = flusher.queue();
    !queue.streams.is_empty() && send_at(now, sent, queue.is_full() && !patient, GAP) <= now
}

/// Stores one batch and tells of it, or only tells. Waits while the database cannot be reached. True if some was put
/// back.
async fn round(engine: &Engine, batch: Batch, untold: BTreeSet<RunId>, tells: bool) -> bool {
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    let mut told: BTreeSet<RunId> = batch.chunks.iter().map(|c| c.owner.run_id).collect();
    let by = engine.readers.by();
    told.extend(untold);
    let what = Some(told.iter()).filter(|_| tells && !told.is_empty()).map(|runs| StreamNotice::new(by, runs));
    let what = what.map(|what| what.to_string());
    let mut waiting: VecDeque<Batch> = VecDeque::from([batch]);
    let (mut what, mut put_back) = (what.as_deref(), false);
    while let Some(mut batch) = waiting.pop_front() {
        batch.drop_what_is_over(engine);
        if batch.is_empty() {
            continue;
        }
        match streams::append(&engine.db, &batch.chunks, what).await {
            Ok(stored) => {
                // Where no row was found, the statement told nobody.
                what = what.filter(|_| stored.iter().all(|stored| *stored == Stored::No));
                put_back |= settle(engine, batch, &stored).await;
            }
            // What did not fit in time is tried in smaller parts: stream by stream, then half of a stream's chunks.
            Err(e) if e.is_slow() && !batch.is_one_chunk() => {
                tracing::debug!(
                    target: "podlock", event = "write_retried", runs = batch.streams.len(), error = %e,
                    "chunks did not fit in time; trying with fewer"
                );
                if batch.streams.len() > 1 {
                    waiting.extend(batch.apart());
                } else {
                    batch.halve(engine);
                    waiting.push_front(batch);
                }
            }
            Err(e) if waits_for_it(&e) || is_under_way(&e) => {
                tracing::debug!(
                    target: "podlock", event = "write_retried", runs = batch.streams.len(), error = %e,
                    "trying again to store chunks"
                );
                tokio::time::sleep(backoff.delay()).await;
                waiting.push_front(batch);
            }
            // One chunk that the server will not have hides none of the others.
            Err(_) if batch.streams.len() > 1 => waiting.extend(batch.apart()),
            Err(e) => {
                for stream in &batch.streams {
                    tracing::warn!(
                        target: "podlock", event = "chunks_refused", run = %stream.owner().run_id, error = %e,
                        "chunks were refused: the stream has a gap"
                    );
                    engine.flusher.forget(stream.refuse(e.for_another()));
                }
            }
        }
    }
    if let Some(what) = what
        && let Err(e) = streams::tell(&engine.db, what).await
    {
        tracing::debug!(
            target: "podlock", event = "untold", error = %e,
            "readers were not told; they look by themselves"
        );
    }
    engine.readers.stir(told.iter());
    if !tells {
        engine.flusher.queue().untold.extend(told);
    }
    put_back
}

/// What became of a batch: what was not stored is another's by now, or its row was locked for a moment. True if some
/// was put back.
async fn settle(engine: &Engine, batch: Batch, stored: &[Stored]) -> bool {
    let mut put_back = false;
    let count = stored.iter().filter(|stored| **stored == Stored::Yes).count();
    engine.member.accepted_writes.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::AcqRel);
    for ((stream, chunks), stored) in batch.streams.into_iter().zip(batch.chunks).zip(stored) {
        let keeps = match stored {
            Stored::Yes => {
                if stream.stored() > 0 {
                    engine.flusher.requeue(stream, 0);
                }
                continue;
            }
            // The next attempt, which this pod makes when it finds the run without a task, takes the stream as it is.
            Stored::Adrift => {
                tracing::warn!(
                    target: "podlock", event = "stream_adrift", run = %stream.owner().run_id,
                    "the database has fewer chunks than were stored: a failover took some back; the run begins anew"
                );
                stream.stop().fire(StopReason::Fenced);
                false
            }
            Stored::No => standing_of(engine, &stream).await.unwrap_or_else(|e| {
                // It is found out by the next try.
                tracing::debug!(
                    target: "podlock", event = "write_retried", run = %stream.owner().run_id, error = %e,
                    "where the run stands is not known yet"
                );
                true
            }),
        };
        put_back |= keeps;
        if keeps {
            let count = chunks.bodies.len();
            stream.put_back(chunks);
            engine.flusher.requeue(stream, count);
        } else {
            engine.flusher.forget(stream.give_up());
        }
    }
    put_back
}

/// Whether the run is still this attempt's; if not, it is told to stop.
async fn standing_of(engine: &Engine, stream: &Stream) -> Result<bool> {
    let owner = stream.owner();
    let standing = runs::status(&engine.db, owner.run_id).await?;
    let is_ours = standing.as_ref().is_some_and(|s| {
        RunState::Running.is(&s.state) && s.owner == Some(owner.incarnation) && s.fence == owner.fence
    });
    if !is_ours {
        let cancelled = standing.as_ref().is_some_and(|s| RunState::Cancelled.is(&s.state));
        stream.stop().fire(if cancelled { StopReason::Cancelled } else { StopReason::Fenced });
        let fenced = runs::fenced("chunks", owner, standing.as_ref());
        tracing::info!(
            target: "podlock", event = "fenced", pod = %engine.member.pod_id, incarnation = %owner.incarnation,
            run = %owner.run_id, fence = owner.fence.get(), error = %fenced, "a write was refused"
        );
    }
    Ok(is_ours)
}
