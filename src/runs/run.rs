//! A run in the hands of its handler.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::StopReason;
use super::registry::StopSignal;
use super::stream::{self, Going, Place, Stream};
use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Fence, Incarnation, PodId, RunId};
use crate::pod::shared::Shared;
use crate::postgres::runs::{self, Claimed, Ending, Owner, Standing};
use crate::postgres::streams::{self, Continued};

/// Delays between tries of a write while the database cannot be reached.
pub(super) const RETRY_MIN: Duration = Duration::from_millis(20);
pub(super) const RETRY_MAX: Duration = Duration::from_millis(500);

/// A run, as its handler holds it: what to do, how far former attempts came, and the means to write under its fence.
///
/// # What a token means
///
/// [`Run::token`] fires when the run is to stop; [`Run::stop_reason`] says why. After [`StopReason::Draining`] writes
/// are still accepted for a while: save a checkpoint, then return [`Outcome::Yield`](super::Outcome::Yield). After any
/// other reason nothing is accepted any more: return soon. A handler that has not returned `lease / 20` after that, or
/// by the deadline of the shutdown, is aborted at its next await. [All that a handler may rely on](crate::handlers).
///
/// # Effects outside of the database
///
/// Pass [`Run::fence`] along as a fencing token: a later attempt bears a larger one. An idempotency key is what stays the
/// same in every attempt: [`Run::id`] with the number of the step.
#[derive(Clone)]
pub struct Run {
    shared: Arc<Shared>,
    facts: Arc<Claimed>,
    owner: Owner,
    stop: Arc<StopSignal>,
    /// The number of the last write. Held while one is under way: they are made one after another.
    writes: Arc<Mutex<i64>>,
    stream: Arc<Stream>,
}

impl Run {
    pub(super) fn new(shared: Arc<Shared>, facts: Claimed, incarnation: Incarnation, stop: Arc<StopSignal>) -> Self {
        let owner = Owner { run_id: facts.run_id, incarnation, fence: facts.fence };
        let stream = Arc::new(Stream::new(owner, Arc::clone(&stop), facts.attempt));
        Self { shared, facts: Arc::new(facts), owner, stop, writes: Arc::default(), stream }
    }

    /// The run.
    #[must_use]
    pub fn id(&self) -> RunId {
        self.facts.run_id
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.facts.kind
    }

    /// Its key, if it was started with one.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.facts.key.as_deref()
    }

    /// Which attempt this is; the first is 1.
    #[must_use]
    pub fn attempt(&self) -> i32 {
        self.facts.attempt
    }

    /// The fence of this attempt.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.facts.fence
    }

    /// The incarnation that owns this attempt.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.owner.incarnation
    }

    /// The name of the pod that runs it.
    #[must_use]
    pub fn pod_id(&self) -> &PodId {
        &self.shared.pod_id
    }

    /// What the run was started with.
    #[must_use]
    pub fn input(&self) -> &Value {
        &self.facts.input
    }

    /// The checkpoint that the run had when this attempt began; `None` if there is none.
    #[must_use]
    pub fn saved(&self) -> Option<&Value> {
        self.facts.checkpoint.as_ref()
    }

    /// Why the run is to stop; `None` while it is not.
    #[must_use]
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop.reason()
    }

    /// Fires when the run is to stop. A child token: cancelling it stops nothing but what listens to it.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.stop.token().child_token()
    }

    /// Resolves with the reason when the run is to stop.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn stopped(&self) -> StopReason {
        self.stop.token().cancelled().await;
        self.stop.reason().unwrap_or(StopReason::Fenced)
    }

    /// Saves `value` for whoever goes on from here, replacing what was saved before. It is progress: crashes of former
    /// owners no longer count against the run.
    ///
    /// While the database cannot be reached the call waits and tries again, until the run is told to stop.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] if the run is no longer this attempt's: stop working on it. Where a reply was lost before, the
    /// value may have been saved for whoever goes on, and [`Error::may_have_been_done`] says so. Others as the server's.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have saved the value; calling again is safe. Calls are made one after another, in the
    /// order in which they were first polled, and a value never replaces one that was saved by a later call.
    pub async fn checkpoint(&self, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        let (what, db) = ("a checkpoint", &self.shared.db);
        let mut writes = self.writes.lock().await;
        self.settle_stream(&mut writes, what).await?;
        let seq = self.stream.going().place().map(|place| place.next);
        let value = &value;
        let save = |number| done(runs::checkpoint(db, self.owner, number, value, seq));
        self.write(&mut writes, what, save, |_| None).await
    }

    /// How many chunks the stream had at the checkpoint that [`Run::saved`] shows; 0 if there is none. What the checkpoint
    /// does not know of begins there: `run.continue_from(run.saved_seq())`.
    #[must_use]
    pub fn saved_seq(&self) -> u64 {
        self.facts.checkpoint_seq.unsigned_abs()
    }

    /// Appends a chunk to the run's stream, for whoever is attached on any pod, and returns its number in the stream's
    /// generation; the first is 0.
    ///
    /// It returns when the chunk is taken, not when it is stored: what all runs of the pod append is stored every 21 ms, in
    /// one statement, or sooner where much of it comes. [`Run::flush`], a checkpoint, a yield and the end of the run wait
    /// until all chunks before them are stored. Where more than 256 KiB or 4,096 chunks of a run wait, the call does too.
    ///
    /// The first call of a later attempt restarts the stream, as [`Run::restart_stream`], unless that or
    /// [`Run::continue_from`] was called before. A chunk beyond all that the run ever said is progress, as a checkpoint is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] if the run is known not to be this attempt's any more; of chunks that were taken before it was
    /// known, [`Run::flush`] says it. [`ErrorKind::InvalidInput`] if the chunk has more than [`CHUNK_LIMIT`](crate::CHUNK_LIMIT)
    /// bytes or a NUL. What the server said of an earlier chunk that it refused: there is a gap then, and the
    /// stream takes nothing more until it is restarted or continued from before the gap.
    ///
    /// # Cancel safety
    ///
    /// A dropped call has not appended the chunk.
    pub async fn append(&self, chunk: impl Into<String>) -> Result<u64> {
        let chunk = chunk.into();
        stream::check_chunk(&chunk)?;
        let mut chunk = Some(chunk);
        let mut writes = self.writes.lock().await;
        self.open_stream(&mut writes).await?;
        loop {
            self.refuse_if_over("a chunk").map_err(|e| self.report(e))?;
            self.stream.refusal()?;
            if let Some((seq, enqueue)) = self.stream.push(&mut chunk, *writes) {
                self.shared.flusher.note_appended(&self.stream, enqueue);
                return Ok(seq.unsigned_abs());
            }
            self.stream.has_room().await;
        }
    }

    /// Appends a chunk and saves a checkpoint, both or neither: whoever goes on from the checkpoint has the chunk, and goes
    /// on after it. Returns the chunk's number.
    ///
    /// While the database cannot be reached the call waits and tries again, until the run is told to stop.
    ///
    /// # Errors
    ///
    /// As [`Run::append`] and [`Run::checkpoint`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have done both; the stream goes on after it.
    pub async fn append_with_checkpoint(&self, chunk: impl Into<String>, value: impl Into<Value>) -> Result<u64> {
        let (chunk, value) = (chunk.into(), value.into());
        stream::check_chunk(&chunk)?;
        let (what, db) = ("a chunk with a checkpoint", &self.shared.db);
        let mut writes = self.writes.lock().await;
        self.settle_stream(&mut writes, what).await?;
        let at = self.open_stream(&mut writes).await?;
        let place = (at.generation, at.next);
        let (chunk, value) = (&chunk, &value);
        let save = |number| done(streams::append_with_checkpoint(db, self.owner, number, place, chunk, value));
        self.stream.set_going(Going::Unknown);
        self.write(&mut writes, what, save, |_| None).await?;
        self.stream.set_going(Going::At(Place { next: at.next + 1, ..at }));
        self.shared.flusher.note_changed(self.owner.run_id);
        Ok(at.next.unsigned_abs())
    }

    /// Waits until all that was appended is stored.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] if the run is not this attempt's any more: some of it may not be stored. What the server said
    /// of a chunk that it refused.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only waits.
    pub async fn flush(&self) -> Result<()> {
        let mut writes = self.writes.lock().await;
        self.settle_stream(&mut writes, "chunks").await
    }

    /// Takes back all that the stream has, from this attempt or former ones, and begins a new generation of it, in one
    /// transaction. Whoever is attached is told. Where the stream has nothing, nothing is taken back.
    ///
    /// # Errors
    ///
    /// As [`Run::checkpoint`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have done it; the next append does it.
    pub async fn restart_stream(&self) -> Result<()> {
        let mut writes = self.writes.lock().await;
        self.restart(&mut writes).await.map(drop)
    }

    /// Keeps the chunks before `seq` and takes back the others, in one transaction; the next chunk is number `seq`. Whoever
    /// is attached and has what is taken back is told.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`] if the stream has fewer than `seq` chunks: it stays as it is. Others as
    /// [`Run::checkpoint`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have done it. Call it again: the next append would restart the stream.
    pub async fn continue_from(&self, seq: u64) -> Result<()> {
        let mut writes = self.writes.lock().await;
        self.stream.settled().await;
        let before = self.stream.going();
        if seq == 0 && before.place().is_some_and(|place| place.next == 0) {
            return Ok(());
        }
        self.stream.set_going(Going::Unsaid);
        let seq = i64::try_from(seq).unwrap_or(i64::MAX);
        let Continued::Short(chunks) = self.go_on(&mut writes, Some(seq)).await? else { return Ok(()) };
        self.stream.set_going(before);
        let run_id = self.owner.run_id;
        let why = format!("run {run_id}: its stream has {chunks} chunks, and cannot go on with number {seq}");
        Err(Error::new(ErrorKind::InvalidInput, why)
            .about_run(run_id)
            .left("the stream is as it was")
            .todo("go on from a chunk that is there, as Run::saved_seq, or restart the stream"))
    }

    /// Goes on with the stream at `seq`, or behind all that it has.
    async fn go_on(&self, writes: &mut i64, seq: Option<i64>) -> Result<Continued> {
        let db = &self.shared.db;
        let go_on = |number| streams::go_on(db, self.owner, number, seq);
        let continued = self.write(writes, "going on with its stream", go_on, |_| None).await?;
        if let Continued::Yes(generation, next) = continued {
            self.stream.set_going(Going::At(Place { generation, next }));
            self.shared.flusher.note_changed(self.owner.run_id);
        }
        Ok(continued)
    }

    async fn restart(&self, writes: &mut i64) -> Result<Place> {
        let db = &self.shared.db;
        self.stream.settled().await;
        if let Some(place) = self.stream.going().place().filter(|place| place.next == 0) {
            return Ok(place);
        }
        self.stream.set_going(Going::Unsaid);
        let restart = |number| streams::restart(db, self.owner, number);
        let generation = self.write(writes, "restarting its stream", restart, |_| None).await?;
        let place = Place { generation, next: 0 };
        self.stream.set_going(Going::At(place));
        self.shared.flusher.note_changed(self.owner.run_id);
        Ok(place)
    }

    /// The stream's place; where nobody has said how it goes on, it is restarted.
    async fn open_stream(&self, writes: &mut i64) -> Result<Place> {
        if self.stream.going() == Going::Unknown {
            self.go_on(writes, None).await?;
        }
        match self.stream.going().place() {
            Some(place) => Ok(place),
            None => self.restart(writes).await,
        }
    }

    /// Waits until the chunks before a write are stored: what it says rests on them.
    async fn settle_stream(&self, writes: &mut i64, what: &str) -> Result<()> {
        self.stream.settled().await;
        self.refuse_if_over(what).map_err(|e| self.report(e))?;
        if self.stream.going() == Going::Unknown {
            self.go_on(writes, None).await?;
        }
        self.stream.refusal()
    }

    pub(super) fn stop_signal(&self) -> Arc<StopSignal> {
        Arc::clone(&self.stop)
    }

    pub(super) async fn finish(&self, ending: &Ending) -> Result<()> {
        let db = &self.shared.db;
        let state = match ending {
            Ending::Succeeded(_) => "succeeded",
            Ending::Failed(_) => "failed",
        };
        // A finish whose reply was lost is read back by its fence.
        let was_done = |s: &Standing| {
            let by_us = s.state == state && s.owner == Some(self.owner.incarnation) && s.fence == self.owner.fence;
            by_us.then_some(())
        };
        let mut writes = self.writes.lock().await;
        match ending {
            Ending::Succeeded(_) => self.settle_stream(&mut writes, "its end").await?,
            // A gap in the stream of a run that fails is part of its failure.
            Ending::Failed(_) => self.stream.settled().await,
        }
        let finish = |_| done(runs::finish(db, self.owner, ending));
        self.write(&mut writes, "its end", finish, was_done).await?;
        self.shared.flusher.note_changed(self.owner.run_id);
        self.shared.note_finished();
        Ok(())
    }

    pub(super) async fn give_back(&self) -> Result<()> {
        let db = &self.shared.db;
        let was_done =
            |s: &Standing| (s.state == "running" && s.owner.is_none() && s.fence == self.owner.fence).then_some(());
        let mut writes = self.writes.lock().await;
        self.stream.settled().await;
        let give_back = |_| done(runs::give_back(db, self.owner));
        self.write(&mut writes, "a yield", give_back, was_done).await?;
        self.shared.registry.note_yielded(self.owner.run_id, crate::pod::clock::now());
        self.shared.note_yielded();
        Ok(())
    }

    /// One fenced write, repeated while the database cannot be reached and nobody told the run to stop. Each try bears
    /// the write's number: one that was given up may arrive after later writes, and must change nothing then.
    ///
    /// A statement returns `None` where it found no row; what it would have returned, had it been done before, says `was_done`.
    async fn write<F, T>(
        &self,
        writes: &mut i64,
        what: &str,
        statement: impl Fn(i64) -> F,
        was_done: impl Fn(&Standing) -> Option<T>,
    ) -> Result<T>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        *writes += 1;
        let number = *writes;
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        // Whether a try may have been accepted although its reply never came.
        let mut in_doubt = false;
        let told = |error: Error, in_doubt| if in_doubt { error.after_a_lost_reply() } else { error };
        loop {
            self.refuse_if_over(what).map_err(|e| self.report(told(e, in_doubt)))?;
            let error = match statement(number).await {
                Ok(Some(written)) => {
                    self.shared.accepted_writes.fetch_add(1, Ordering::AcqRel);
                    return Ok(written);
                }
                Ok(None) => match runs::standing(&self.shared.db, self.owner.run_id).await {
                    Ok(standing) => {
                        if let Some(written) = standing.as_ref().and_then(&was_done) {
                            return Ok(written);
                        }
                        let ended = standing.as_ref().is_some_and(|s| s.state == "cancelled");
                        self.stop.fire(if ended { StopReason::Cancelled } else { StopReason::Fenced });
                        let fenced = runs::fenced(what, self.owner, standing.as_ref());
                        return Err(self.report(told(fenced, in_doubt)));
                    }
                    Err(e) => e,
                },
                Err(e) => {
                    in_doubt |= e.may_have_been_done();
                    e
                }
            };
            if !waits_for_it(&error) {
                let error = error.during(&format!("run {}: {what}", self.owner.run_id)).about_run(self.owner.run_id);
                // What the server answered with an error it undid; anything else may be the end of the pod.
                let answered = error.sqlstate().is_some();
                let error = if answered { error.left("nothing was written; the run goes on") } else { error };
                return Err(told(error, in_doubt));
            }
            // A password that was changed, a certificate that ran out: the run waits for it, and somebody has to know.
            if passes_by_itself(&error) {
                tracing::debug!(target: "podlock", event = "write_retried", run = %self.owner.run_id, error = %error, "trying again");
            } else {
                tracing::warn!(target: "podlock", event = "write_retried", run = %self.owner.run_id, error = %error, "no connection, and it needs a hand; trying again");
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    /// L7, on our side of the wire: a run that was told to stop for good writes nothing more.
    fn refuse_if_over(&self, what: &str) -> Result<()> {
        let reason = match self.stop.reason() {
            Some(reason) if reason > StopReason::Draining => reason,
            _ if self.shared.is_past_deadline() => {
                self.stop.fire(StopReason::SelfFenced);
                StopReason::SelfFenced
            }
            _ => return Ok(()),
        };
        let why = match reason {
            StopReason::Cancelled => "the run was cancelled",
            StopReason::SelfFenced => "the pod was silent for too long and gave its runs up",
            StopReason::Draining | StopReason::Fenced => "the run is no longer this attempt's",
        };
        let (run_id, fence) = (self.owner.run_id, self.owner.fence);
        Err(Error::new(ErrorKind::Fenced, format!("run {run_id}: {what} under fence {fence} was not sent: {why}"))
            .about_run(run_id)
            .left("nothing was written")
            .todo("stop working on it"))
    }

    fn report(&self, error: Error) -> Error {
        tracing::info!(
            target: "podlock", event = "fenced", pod = %self.shared.pod_id, incarnation = %self.owner.incarnation,
            run = %self.owner.run_id, fence = self.owner.fence.get(), error = %error, "a write was refused"
        );
        error
    }
}

/// A statement that found its row, or not.
async fn done(statement: impl Future<Output = Result<bool>>) -> Result<Option<()>> {
    Ok(statement.await?.then_some(()))
}

/// A failure that ends without anybody's doing; a standby was a primary a moment ago: a failover is under way.
fn passes_by_itself(error: &Error) -> bool {
    error.is_transient() || error.kind() == ErrorKind::Standby
}

/// Whether a write waits for what failed to pass, or to be mended.
pub(super) fn waits_for_it(error: &Error) -> bool {
    passes_by_itself(error) || error.is_unconnected()
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run")
            .field("id", &self.facts.run_id)
            .field("kind", &self.facts.kind)
            .field("attempt", &self.facts.attempt)
            .field("fence", &self.facts.fence)
            .field("stop_reason", &self.stop.reason())
            .finish_non_exhaustive()
    }
}
