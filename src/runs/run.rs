//! A run in the hands of its handler.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use super::registry::StopSignal;
use super::stream::Stream;
use super::{Outcome, StopReason};
use super::{failures, guard};
use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Fence, Incarnation, PodId, RunId};
use crate::output::{Limits, Output, size, storable};
use crate::protocol::state::RunState;
use crate::store::runs::{self, Claimed, Ending, Owner, RunStatus};

/// Delays between tries of a write while the database cannot be reached.
pub(super) const RETRY_MIN: Duration = Duration::from_millis(20);
pub(super) const RETRY_MAX: Duration = Duration::from_millis(500);

/// After how many tries that did not end in time, while small writes did, a write is given up.
const SLOW_TRIES: u32 = 3;

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
/// Pass [`Run::fence`] along as a fencing token: a later attempt bears a larger one. An idempotency key is what stays
/// the same in every attempt: [`Run::id`] with the number of the step.
#[derive(Clone)]
pub struct Run {
    pub(super) engine: Arc<Engine>,
    facts: Arc<Claimed>,
    pub(super) owner: Owner,
    stop: Arc<StopSignal>,
    /// Held while a write is under way: they are made one after another.
    pub(super) writes: Arc<Mutex<Writes>>,
    pub(super) stream: Arc<Stream>,
}

/// What an attempt knows of its writes.
#[derive(Debug, Default)]
pub(super) struct Writes {
    /// The number of the last one.
    pub(super) number: i64,
    end: Written,
}

/// What an attempt knows of an end that it wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Written {
    #[default]
    Nothing,
    /// A call was dropped, or got no reply: its end may stand.
    Perhaps,
    Surely,
}

impl Run {
    pub(super) fn new(engine: Arc<Engine>, facts: Claimed, incarnation: Incarnation, stop: Arc<StopSignal>) -> Self {
        let owner = Owner { run_id: facts.run_id, incarnation, fence: facts.fence };
        let stream = Arc::new(Stream::new(owner, Arc::clone(&stop), facts.attempt));
        Self { engine, facts: Arc::new(facts), owner, stop, writes: Arc::default(), stream }
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
        &self.engine.member.pod_id
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
    /// [`ErrorKind::Fenced`] if the run is no longer this attempt's: stop working on it. Where a reply was lost before,
    /// the value may have been saved for whoever goes on, and [`Error::may_have_been_done`] says so.
    /// [`ErrorKind::InvalidInput`] for a value that has U+0000 or is nested deeper than 127, [`ErrorKind::TooLarge`]
    /// for one that has more bytes than `checkpoint_max_bytes`. [`ErrorKind::TooSlow`] where three tries did not end
    /// within `statement_timeout`, although a small write of the run did after each: the run goes on, and
    /// [`Error::may_have_been_done`] says whether the value may have been saved. Others as the server's.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have saved the value; calling again is safe. Calls are made one after another, in
    /// the order in which they were first polled, and a value never replaces one that was saved by a later call.
    pub async fn checkpoint(&self, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        self.check_checkpoint(&value)?;
        let (what, db) = ("a checkpoint", &self.engine.db);
        let mut writes = self.writes.lock().await;
        self.settle_stream(&mut writes, what).await?;
        let seq = self.stream.going().place().map(|place| place.next);
        let value = &value;
        let save = |number| done(runs::checkpoint(db, self.owner, number, value, seq));
        self.write(&mut writes, what, save, |_| None).await
    }

    /// What could not be read by the next attempt is no checkpoint.
    pub(super) fn check_checkpoint(&self, value: &Value) -> Result<()> {
        let run_id = self.owner.run_id;
        let most = self.engine.member.settings.checkpoint_max_bytes;
        let bytes = size(value)?;
        if bytes > most {
            let what =
                format!("run {run_id}: a checkpoint has {bytes} bytes, and {most} (checkpoint_max_bytes) is the most");
            return Err(Error::new(ErrorKind::TooLarge, what)
                .about_run(run_id)
                .state("nothing was written; the run goes on")
                .help("keep it elsewhere and save where it is, or raise the limit"));
        }
        storable(value).map_err(|why| {
            Error::new(ErrorKind::InvalidInput, format!("run {run_id}: a checkpoint cannot be stored: {why}"))
                .about_run(run_id)
                .state("nothing was written; the run goes on")
                .help("correct the value")
        })
    }

    /// How many chunks the stream had at the checkpoint that [`Run::saved`] shows; 0 if there is none. What the
    /// checkpoint does not know of begins there: `run.continue_from(run.saved_seq())`.
    #[must_use]
    pub fn saved_seq(&self) -> u64 {
        self.facts.checkpoint_seq.unsigned_abs()
    }

    /// Ends the run with this output, as succeeded, or as failed if [`Output::error`] says why. It is over when this
    /// returns: its key is free, no other write of it is accepted, and what the handler returns does not matter any
    /// more. Return [`Outcome::Finished`], which is what this returns. To return an [`Outcome::Output`] does the same.
    ///
    /// A run ends once: of several calls, of clones too, the first that is accepted stands.
    ///
    /// While the database cannot be reached the call waits and tries again, until the run is told to stop.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] and [`ErrorKind::InvalidInput`] for an output that cannot be stored: the run goes on,
    /// and can be finished with another. [`ErrorKind::Fenced`] if the run is no longer this attempt's or has ended, by
    /// an earlier call too; where such a call was dropped or got no reply, [`Error::may_have_been_done`] says so.
    /// Others as the server's.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have ended the run. What the handler returns then ends it, unless that call did.
    pub async fn finish(&self, output: impl Into<Output>) -> Result<Outcome> {
        self.end(&Ending::of(output.into())).await.map(|()| Outcome::Finished)
    }

    /// Guards a transaction of the handler's own, on a connection to the same database: it can be committed only while
    /// the run is this attempt's, and nobody claims, checkpoints or ends the run before it has ended. Call it before
    /// the first statement that the fence is to protect, and not behind a savepoint, to which it could be rolled back.
    ///
    /// Until the end of the transaction its `statement_timeout`, `idle_in_transaction_session_timeout` and
    /// `tcp_user_timeout` are half of the lease at most, so that a handler that froze does not keep its run from
    /// others. Keep it short, and do not await [`Run::checkpoint`] inside of it: that waits for the transaction, and
    /// the transaction for it, until the server ends it for being idle. Under `REPEATABLE READ` and `SERIALIZABLE` a
    /// run that was written to since the transaction's first statement fails with SQLSTATE 40001: begin the transaction
    /// again. [With an example](crate::guards).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] if the run is no longer this attempt's: stop working on it. Others as the server's. After
    /// any error the transaction cannot be committed any more.
    ///
    /// # Cancel safety
    ///
    /// After a dropped call, roll the transaction back.
    pub async fn guard(&self, txn: &tokio_postgres::Transaction<'_>) -> Result<()> {
        let over = self.refuse_if_over("a guard").err();
        let taken = guard::take(&self.engine, self.owner, &self.stop, over, txn).await;
        taken.map_err(|e| if e.is_fenced() { self.report(e) } else { e })
    }

    pub(super) fn stop_signal(&self) -> Arc<StopSignal> {
        Arc::clone(&self.stop)
    }

    /// Whether this attempt has ended its run. Waits for an end that is being written.
    pub(super) async fn has_ended(&self) -> bool {
        self.writes.lock().await.end == Written::Surely
    }

    pub(super) async fn end(&self, ending: &Ending) -> Result<()> {
        let settings = &self.engine.member.settings;
        let limits = Limits { result: settings.result_max_bytes, stderr: settings.stderr_max_bytes };
        let about = |e: Error| e.during(&format!("run {}: its end", self.owner.run_id)).about_run(self.owner.run_id);
        let columns = ending.output().columns(limits).map_err(about)?;
        let mut writes = self.writes.lock().await;
        if writes.end == Written::Surely {
            return Err(self.report(self.ended_before()));
        }
        match ending {
            Ending::Succeeded(_) => self.settle_stream(&mut writes, "its end").await?,
            // A gap in the stream of a run that fails is part of its failure.
            Ending::Failed(..) => self.stream.settled().await,
        }
        let was = std::mem::replace(&mut writes.end, Written::Perhaps);
        let db = &self.engine.db;
        let state = ending.state();
        // Accepted now; a finish whose reply was lost is read back by its fence.
        let was_done = |s: &RunStatus| {
            let by_us = s.state == state && s.owner == Some(self.owner.incarnation) && s.fence == self.owner.fence;
            by_us.then_some(false)
        };
        let columns = &columns;
        let seq = match ending {
            Ending::Succeeded(_) => self.stream.going().place().map(|place| place.next),
            Ending::Failed(..) => None,
        };
        let finish = async |_| Ok(runs::finish(db, self.owner, ending, columns, seq).await?.then_some(true));
        let written = self.write(&mut writes, "its end", finish, was_done).await;
        writes.end = match &written {
            Ok(_) => Written::Surely,
            Err(e) if !e.may_have_been_done() => was,
            Err(_) => Written::Perhaps,
        };
        let accepted = written?;
        self.engine.flusher.note_changed(self.owner.run_id);
        self.engine.note_finished();
        if let Ending::Failed(why, _) = ending {
            failures::note(&self.engine, self.owner, self.kind(), self.attempt(), why);
        }
        // What stands may be the end of the call that was dropped, with another output.
        if !accepted && was == Written::Perhaps {
            return Err(self.report(self.ended_before().done_before()));
        }
        Ok(())
    }

    fn ended_before(&self) -> Error {
        let (run_id, fence) = (self.owner.run_id, self.owner.fence);
        Error::new(ErrorKind::Fenced, format!("run {run_id}: its end was written before, under the same fence {fence}"))
            .about_run(run_id)
            .state("the first end stands")
            .help("finish a run once, and return")
    }

    pub(super) async fn give_back(&self) -> Result<()> {
        let db = &self.engine.db;
        let was_done = |s: &RunStatus| {
            (RunState::Running.is(&s.state) && s.owner.is_none() && s.fence == self.owner.fence).then_some(())
        };
        let mut writes = self.writes.lock().await;
        self.stream.settled().await;
        let give_back = |_| done(runs::give_back(db, self.owner));
        self.write(&mut writes, "a yield", give_back, was_done).await?;
        self.engine.registry.note_yielded(self.owner.run_id, crate::membership::clock::now());
        self.engine.note_yielded();
        Ok(())
    }

    /// One fenced write, repeated while the database cannot be reached and nobody told the run to stop. Each try bears
    /// the write's number: one that was given up may arrive after later writes, and must change nothing then.
    ///
    /// A statement returns `None` where it found no row; what it would have returned, had it been done before, says
    /// `was_done`.
    pub(super) async fn write<F, T>(
        &self,
        writes: &mut Writes,
        what: &str,
        statement: impl Fn(i64) -> F,
        was_done: impl Fn(&RunStatus) -> Option<T>,
    ) -> Result<T>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        writes.number += 1;
        let number = writes.number;
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        let mut slow = 0;
        // Whether a try may have been accepted although its reply never came.
        let mut in_doubt = false;
        let told = |error: Error, in_doubt| if in_doubt { error.after_a_lost_reply() } else { error };
        loop {
            self.refuse_if_over(what).map_err(|e| self.report(told(e, in_doubt)))?;
            let error = match statement(number).await {
                Ok(Some(written)) => {
                    self.engine.member.accepted_writes.fetch_add(1, Ordering::AcqRel);
                    return Ok(written);
                }
                Ok(None) => match runs::status(&self.engine.db, self.owner.run_id).await {
                    Ok(standing) => {
                        if let Some(written) = standing.as_ref().and_then(&was_done) {
                            return Ok(written);
                        }
                        let ended = standing.as_ref().is_some_and(|s| RunState::Cancelled.is(&s.state));
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
                let error = if answered { error.state("nothing was written; the run goes on") } else { error };
                return Err(told(error, in_doubt));
            }
            if error.is_slow() && self.small_writes_pass().await {
                slow += 1;
                if slow >= SLOW_TRIES {
                    return Err(self.too_slow(what, &error, in_doubt));
                }
            }
            // A password that was changed, a certificate that ran out: the run waits for it, and somebody has to know.
            if passes_by_itself(&error) {
                tracing::debug!(
                    target: "podlock", event = "write_retried", run = %self.owner.run_id, error = %error,
                    "trying again"
                );
            } else {
                tracing::warn!(
                    target: "podlock", event = "write_retried", run = %self.owner.run_id, error = %error,
                    "no connection, and it needs a hand; trying again"
                );
            }
            tokio::time::sleep(backoff.delay()).await;
        }
    }

    /// Whether a small write of the same row ends in time: then the database, the lock of the row and a standby that
    /// commits wait for are all well, and what does not end is too large.
    async fn small_writes_pass(&self) -> bool {
        runs::touch(&self.engine.db, self.owner).await.unwrap_or(false)
    }

    fn too_slow(&self, what: &str, error: &Error, in_doubt: bool) -> Error {
        let run_id = self.owner.run_id;
        let what =
            format!("run {run_id}: {what} did not end in time, {SLOW_TRIES} times, while small writes did: {error}");
        Error::new(ErrorKind::TooSlow, what)
            .about_run(run_id)
            .given_up(in_doubt)
            .help("write less at once, or raise statement_timeout")
    }

    /// L7, on our side of the wire: a run that was told to stop for good writes nothing more.
    pub(super) fn refuse_if_over(&self, what: &str) -> Result<()> {
        let reason = match self.stop.reason() {
            Some(reason) if reason > StopReason::Draining => reason,
            _ if self.engine.member.is_past_deadline() => {
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
            .state("nothing was written")
            .help("stop working on it"))
    }

    pub(super) fn report(&self, error: Error) -> Error {
        tracing::info!(
            target: "podlock", event = "fenced", pod = %self.engine.member.pod_id, incarnation = %self.owner.incarnation,
            run = %self.owner.run_id, fence = self.owner.fence.get(), error = %error, "a write was refused"
        );
        error
    }
}

/// A statement that found its row, or not.
pub(super) async fn done(statement: impl Future<Output = Result<bool>>) -> Result<Option<()>> {
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
