//! The flusher stores the chunks of all streams of a pod, one statement at a time. It tells the readers of this pod, and
//! notifies those on other pods that may be asleep (`protocol::awake`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Stream;
use super::queue::Batch;
use crate::background::part::{Next, Part};
use crate::backoff::Backoff;
use crate::error::Result;
use crate::id::RunId;
use crate::membership::clock;
use crate::meters;
use crate::protocol::Moment;
use crate::protocol::awake::Teller;
use crate::protocol::state::RunState;
use crate::protocol::stream::send_at;
use crate::runs::StopReason;
use crate::runs::engine::Engine;
use crate::runs::run::{RETRY_MAX, RETRY_MIN, waits_for_it};
use crate::store::runs;
use crate::store::streams::{self, Stored, Tell, is_under_way};

/// The least time between two statements that are not full: 16 ms, so at most 63 in any second. A shorter gap would cost
/// more commits, and a longer one would delay readers. The readers of this pod are told of other changes at the same rate.
const GAP: Duration = Duration::from_millis(16);

/// Stores chunks and tells readers.
pub(crate) struct Flushing {
    engine: Arc<Engine>,
    /// When the last statement with chunks was begun.
    sent: Option<Moment>,
    /// When changes that other statements made were last passed on.
    passed_on: Option<Moment>,
    teller: Teller,
    /// After chunks were put back, the next statement waits for the gap, even if a batch is full.
    patient: bool,
    /// The round that waits for the database.
    begun: Option<Round>,
}

impl Flushing {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine, sent: None, passed_on: None, teller: Teller::default(), patient: false, begun: None }
    }

    /// Takes what is due from the queue.
    fn begin(&mut self) -> Round {
        let flusher = &self.engine.flusher;
        let now = clock::now();
        if send_at(now, self.passed_on, false, GAP) <= now {
            let changed = std::mem::take(&mut flusher.queue().changed);
            if !changed.is_empty() {
                self.passed_on = Some(now);
                self.engine.readers.stir(changed.iter().map(|(run_id, _)| run_id));
            }
            for (run_id, began) in changed {
                self.teller.note_changed(run_id, began, now, false);
            }
        }
        let is_due = {
            let queue = flusher.queue();
            !queue.streams.is_empty() && send_at(now, self.sent, queue.is_full() && !self.patient, GAP) <= now
        };
        let batch = if is_due { flusher.take() } else { Batch::default() };
        if !batch.is_empty() {
            self.sent = Some(now);
        }
        Round { waiting: VecDeque::from([batch]), put_back: false }
    }

    /// When the next round is due. `None` if there is nothing to do.
    fn due(&self) -> Option<Moment> {
        let now = clock::now();
        let queue = self.engine.flusher.queue();
        let send = (!queue.streams.is_empty()).then(|| send_at(now, self.sent, queue.is_full() && !self.patient, GAP));
        let pass_on = (!queue.changed.is_empty()).then(|| send_at(now, self.passed_on, false, GAP));
        // A notice goes with the next chunks, if there are some.
        let tell = if send.is_none() { self.teller.due() } else { None };
        [send, pass_on, tell].into_iter().flatten().min()
    }
}

impl Part for Flushing {
    const NAME: &'static str = "the flusher of streams";

    async fn woken(&mut self) {
        let flusher = &self.engine.flusher;
        loop {
            let Some(at) = self.due() else {
                flusher.wake.notified().await;
                continue;
            };
            let now = clock::now();
            if at <= now {
                return;
            }
            // If a batch fills meanwhile, it is sent at once.
            tokio::select! {
                () = tokio::time::sleep(at - now) => return,
                () = flusher.wake.notified() => {}
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(RETRY_MIN, RETRY_MAX)
    }

    async fn work(&mut self) -> Next {
        let mut round = match self.begun.take() {
            Some(begun) => begun,
            None => self.begin(),
        };
        if round.store(&self.engine, &mut self.teller).await == Reached::No {
            self.begun = Some(round);
            return Next::BackOff;
        }
        self.patient = round.put_back;
        tell(&self.engine, &mut self.teller).await;
        Next::Wait
    }
}

/// One batch to store, or parts of it.
struct Round {
    waiting: VecDeque<Batch>,
    /// Chunks were put back.
    put_back: bool,
}

/// Whether the database could be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    Yes,
    No,
}

impl Round {
    /// Stores the batches that wait, until the database cannot be reached.
    async fn store(&mut self, engine: &Engine, teller: &mut Teller) -> Reached {
        while let Some(mut batch) = self.waiting.pop_front() {
            batch.drop_what_is_over(&engine.flusher, engine.member.is_past_deadline());
            if batch.is_empty() {
                continue;
            }
            let now = clock::now();
            let since = *batch.since.get_or_insert(now);
            let asked = teller.ask(batch.chunks.iter().map(|chunks| chunks.owner.run_id), now);
            match streams::append(&engine.db, &batch.chunks, &tell_of(engine, asked.iter().copied())).await {
                Ok((stored, told)) => {
                    note_told(told);
                    let ended = clock::now();
                    // If the statement found no row at all, it notified nobody.
                    if stored.iter().any(|stored| *stored != Stored::No) {
                        teller.answered(&asked, told, ended);
                    }
                    let of_all = batch.chunks.iter().map(|chunks| chunks.owner.run_id).zip(&stored);
                    let runs: Vec<RunId> =
                        of_all.filter(|(_, stored)| **stored == Stored::Yes).map(|(run_id, _)| run_id).collect();
                    for run_id in &runs {
                        teller.note_changed(*run_id, since, ended, asked.contains(run_id));
                    }
                    engine.readers.stir(runs.iter());
                    self.put_back |= settle(engine, batch, &stored).await;
                }
                // A batch that did not end in time is tried in smaller parts: stream by stream, then half of a
                // stream's chunks.
                Err(e) if e.is_slow() && !batch.is_one_chunk() => {
                    tracing::debug!(
                        target: "podlock", event = "write_retried", runs = batch.streams.len(), error = %e,
                        "chunks did not fit in time; trying with fewer"
                    );
                    if batch.streams.len() > 1 {
                        self.waiting.extend(batch.apart());
                    } else {
                        batch.halve(&engine.flusher);
                        self.waiting.push_front(batch);
                    }
                }
                Err(e) if waits_for_it(&e) || is_under_way(&e) => {
                    tracing::debug!(
                        target: "podlock", event = "write_retried", runs = batch.streams.len(), error = %e,
                        "trying again to store chunks"
                    );
                    self.waiting.push_front(batch);
                    return Reached::No;
                }
                // The server refused one chunk. Each stream is tried alone, so that this chunk does not stop the
                // others.
                Err(_) if batch.streams.len() > 1 => self.waiting.extend(batch.apart()),
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
        Reached::Yes
    }
}

fn tell_of(engine: &Engine, runs: impl Iterator<Item = RunId>) -> Tell {
    Tell::new(Some(engine.member.incarnation()), engine.readers.by(), runs)
}

/// Notifies readers of what went with no chunks.
async fn tell(engine: &Engine, teller: &mut Teller) {
    let asked = teller.ask(std::iter::empty(), clock::now());
    if asked.is_empty() {
        return;
    }
    let told = streams::tell(&engine.db, &tell_of(engine, asked.iter().copied())).await.unwrap_or_else(|e| {
        tracing::debug!(
            target: "podlock", event = "untold", error = %e,
            "readers were not told; they look by themselves"
        );
        true
    });
    note_told(told);
    teller.answered(&asked, told, clock::now());
}

fn note_told(told: bool) {
    if told {
        meters::count(meters::NOTICES_SENT, "about", "stream");
    }
}

/// Handles the result of a batch. Chunks that were not stored belong to a run that another attempt has by now, or whose
/// row was locked for a moment. Returns true if chunks were put back.
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
            // The next attempt uses the stream as the database has it. This pod makes that attempt when it finds the
            // run without a task.
            Stored::Adrift => {
                tracing::warn!(
                    target: "podlock", event = "stream_adrift", run = %stream.owner().run_id,
                    "the database has fewer chunks than were stored: a failover took some back; the run begins anew"
                );
                stream.stop().fire(StopReason::Fenced);
                false
            }
            Stored::No => standing_of(engine, &stream).await.unwrap_or_else(|e| {
                // The next try finds out.
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

/// Whether this attempt still has the run. If not, the run is told to stop.
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
