//! A run, as its handler sees it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use super::mobility::{self, Mobility};
use super::registry::StopSignal;
use super::stream::Stream;
use super::{Outcome, StopReason};
use super::{failures, guard};
use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Fence, Incarnation, PodId, RunId};
use crate::membership::clock;
use crate::meters;
use crate::output::{Limits, Output, size, storable};
use crate::protocol::state::RunState;
use crate::store::grouped::{Checkpoint, Release};
use crate::store::runs::{self, Claimed, Ending, Owner, RunStatus};

/// The least and the longest delay between two tries of a write while the database cannot be reached. Shorter delays
/// would load a server that is coming back. Longer ones would hold runs up after it is back.
pub(super) const RETRY_MIN: Duration = Duration::from_millis(20);
pub(super) const RETRY_MAX: Duration = Duration::from_millis(500);

/// A write is given up after this many tries that did not end in time, if a small write did end in time after each.
/// With fewer, a moment's load would fail a handler's write. With more, the handler would wait longer for a write that
/// is too large.
const SLOW_TRIES: u32 = 3;

/// A run, as its handler sees it: its input, the last checkpoint, and the writes under its fence.
///
/// # What a token means
///
/// [`Run::token`] fires when the run must stop. [`Run::stop_reason`] says why. After [`StopReason::Draining`] writes
/// are still accepted for a while: save a checkpoint, then return [`Outcome::Yield`](super::Outcome::Yield). The same
/// goes for [`StopReason::Moving`], which only runs meet that may move ([`NewRun::movable`](super::NewRun::movable)).
/// After any other reason no write is accepted: return soon. A handler that has not returned `lease / 20` after that,
/// or by the deadline of the shutdown, is aborted at its next await. [All that a handler may rely on](crate::handlers).
///
/// # Effects outside of the database
///
/// Send [`Run::fence`] along as a fencing token: a later attempt has a larger one. Use [`Run::id`] with the number of
/// the step as an idempotency key: it is the same in every attempt.
#[derive(Clone)]
pub struct Run {
    pub(super) engine: Arc<Engine>,
    facts: Arc<Claimed>,
    pub(super) owner: Owner,
    stop: Arc<StopSignal>,
    /// `None`: the run may not move.
    mobility: Option<Arc<Mobility>>,
    /// Held while a write is under way, so that writes are made one after another.
    pub(super) writes: Arc<Mutex<Writes>>,
    pub(super) stream: Arc<Stream>,
}

/// What an attempt knows of its own writes.
#[derive(Debug, Default)]
pub(super) struct Writes {
    /// The number of the last write.
    pub(super) number: i64,
    end: Written,
}

/// What an attempt knows of its own write of the run's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Written {
    #[default]
    Nothing,
    /// A call was dropped or got no reply. The end may have been stored.
    Perhaps,
    Surely,
}

impl Run {
    pub(super) fn new(
        engine: Arc<Engine>,
        facts: Claimed,
        incarnation: Incarnation,
        stop: Arc<StopSignal>,
        mobility: Option<Arc<Mobility>>,
    ) -> Self {
        let owner = Owner { run_id: facts.run_id, incarnation, fence: facts.fence };
        let stream = Arc::new(Stream::new(owner, Arc::clone(&stop), facts.attempt));
        Self { engine, facts: Arc::new(facts), owner, stop, mobility, writes: Arc::default(), stream }
    }

    /// The run.
    #[must_use]
    pub fn id(&self) -> RunId {
        self.facts.run_id
    }

    /// The run's kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.facts.kind
    }

    /// The run's key, if it was started with one.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.facts.key.as_deref()
    }

    /// The number of this attempt. The first is 1.
    #[must_use]
    pub fn attempt(&self) -> i32 {
        self.facts.attempt
    }

    /// The trace that the run belongs to, as the header `traceparent` of W3C Trace Context writes it: the same in every
    /// attempt, on whichever pod. `None` if an older version, or another program, made the run.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.facts.traceparent.as_deref()
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

    /// The name of the pod that executes this attempt.
    #[must_use]
    pub fn pod_id(&self) -> &PodId {
        &self.engine.member.pod_id
    }

    /// The input with which the run was started.
    #[must_use]
    pub fn input(&self) -> &Value {
        &self.facts.input
    }

    /// The checkpoint that the run had when this attempt began. `None` if there was none.
    #[must_use]
    pub fn saved(&self) -> Option<&Value> {
        self.facts.checkpoint.as_ref()
    }

    /// Why the run must stop. `None` as long as it need not.
    #[must_use]
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop.reason()
    }

    /// A token that fires when the run must stop. It is a child token: if you cancel it, only those who wait for it are
    /// stopped.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.stop.token().child_token()
    }

    /// Resolves with the reason when the run must stop.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn stopped(&self) -> StopReason {
        self.stop.token().cancelled().await;
        self.stop.reason().unwrap_or(StopReason::Fenced)
    }

    /// Saves `value` as the run's checkpoint and replaces the one before. The next attempt resumes from it. A
    /// checkpoint is progress: crashes of former owners no longer count against the run.
    ///
    /// While the database cannot be reached, the call waits and retries, until the run is told to stop.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] if another attempt has the run, or the run has ended: stop working on it. If the reply of
    /// an earlier try was lost, the value may have been saved, and [`Error::may_have_been_done`] says so.
    /// [`ErrorKind::InvalidInput`] for a value that has U+0000 or is nested deeper than 127 levels.
    /// [`ErrorKind::TooLarge`] for a value with more bytes than `checkpoint_max_bytes`. [`ErrorKind::TooSlow`] if three
    /// tries did not end within `statement_timeout`, although a small write of the run did after each. The run goes on,
    /// and [`Error::may_have_been_done`] says whether the value may have been saved. Other errors come from the server.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have saved the value. Calling again is safe. Calls are made one after another, in
    /// the order in which they were first polled. A value never replaces a value of a later call.
    pub async fn checkpoint(&self, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        let bytes = self.check_checkpoint(&value)?;
        let what = "a checkpoint";
        let mut writes = self.writes.lock().await;
        self.settle_stream(&mut writes, what).await?;
        let seq = self.stream.going().place().map(|place| place.next);
        let value = Arc::new(value);
        let save = |number| {
            let checkpoint = Checkpoint { owner: self.owner, number, value: Arc::clone(&value), seq };
            async move { done(self.engine.write_checkpoint(&checkpoint, bytes)).await }
        };
        self.write(&mut writes, what, save, |_| None).await?;
        self.note_saved();
        Ok(())
    }

    /// Records that this attempt has a checkpoint of its own. From then on the run may move.
    pub(super) fn note_saved(&self) {
        if let Some(mobility) = &self.mobility {
            mobility.note_saved();
        }
    }

    /// Refuses a value that the next attempt could not read. Returns how many bytes the value has.
    pub(super) fn check_checkpoint(&self, value: &Value) -> Result<usize> {
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
        storable(value).map(|()| bytes).map_err(|why| {
            Error::new(ErrorKind::InvalidInput, format!("run {run_id}: a checkpoint cannot be stored: {why}"))
                .about_run(run_id)
                .state("nothing was written; the run goes on")
                .help("correct the value")
        })
    }

    /// How many chunks the stream had at the checkpoint that [`Run::saved`] returns; 0 if there is none. To drop the
    /// chunks after the checkpoint, call `run.continue_from(run.saved_seq())`.
    #[must_use]
    pub fn saved_seq(&self) -> u64 {
        self.facts.checkpoint_seq.unsigned_abs()
    }

    /// Ends the run with this output. It has succeeded, unless [`Output::error`] says why it failed. When this returns,
    /// the run is over: its key is free, no other write is accepted, and the handler's return value does not matter any
    /// more. Return [`Outcome::Finished`], which this call returns. Returning an [`Outcome::Output`] does the same.
    ///
    /// A run ends once. Of several calls, also from clones, the first that is accepted counts.
    ///
    /// While the database cannot be reached, the call waits and retries, until the run is told to stop.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::TooLarge`] and [`ErrorKind::InvalidInput`] for an output that cannot be stored. The run goes on,
    /// and can be finished with another output. [`ErrorKind::Fenced`] if another attempt has the run, or the run has
    /// ended, also by an earlier call. If that earlier call was dropped or got no reply, [`Error::may_have_been_done`]
    /// says so. Other errors come from the server.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have ended the run. If it did not, the handler's return value ends it.
    pub async fn finish(&self, output: impl Into<Output>) -> Result<Outcome> {
        self.end(&Arc::new(Ending::of(output.into()))).await.map(|()| Outcome::Finished)
    }

    /// Guards a handler's own transaction, on a connection to the same database. The transaction can be committed only
    /// while this attempt has the run. Until it ends, nobody can claim, checkpoint or end the run. Call this before the
    /// first statement that the fence must protect. Do not call it after a savepoint: a rollback to that savepoint
    /// would undo the guard.
    ///
    /// Until the transaction ends, its `statement_timeout`, `idle_in_transaction_session_timeout` and
    /// `tcp_user_timeout` are at most half of the lease. So a frozen handler does not keep its run from other pods.
    /// Keep the transaction short. Do not await [`Run::checkpoint`] inside it: the checkpoint waits for the
    /// transaction, and the transaction for the checkpoint, until the server ends the transaction for being idle. Under
    /// `REPEATABLE READ` and `SERIALIZABLE` the guard fails with SQLSTATE 40001 if the run's row was written after the
    /// transaction's first statement. Begin the transaction again then. [With an example](crate::guards).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] if another attempt has the run, or the run has ended: stop working on it. Other errors
    /// come from the server. After any error the transaction cannot be committed any more.
    ///
    /// # Cancel safety
    ///
    /// After a dropped call, roll the transaction back.
    pub async fn guard(&self, txn: &tokio_postgres::Transaction<'_>) -> Result<()> {
        let over = self.refuse_if_over("a guard").err();
        let taken = guard::take(&self.engine, self.owner, &self.stop, over, txn).await;
        taken.map_err(|e| if e.is_fenced() { self.report(e) } else { e })
    }

    /// The span of this attempt. It has no parent among the spans of this process: what began the attempt is not what
    /// the run belongs to.
    pub(super) fn span(&self) -> tracing::Span {
        let Claimed { run_id, kind, attempt, fence, traceparent, taken_over, .. } = &*self.facts;
        tracing::info_span!(
            target: "podlock", parent: None, "podlock::run", run_id = %run_id, kind, attempt, fence = fence.get(),
            traceparent, taken_over
        )
    }

    pub(super) fn stop_signal(&self) -> Arc<StopSignal> {
        Arc::clone(&self.stop)
    }

    /// Whether this attempt has ended its run. If an end is being written, waits for it.
    pub(super) async fn has_ended(&self) -> bool {
        self.writes.lock().await.end == Written::Surely
    }

    pub(super) async fn end(&self, ending: &Arc<Ending>) -> Result<()> {
        let settings = &self.engine.member.settings;
        let limits = Limits { result: settings.result_max_bytes, stderr: settings.stderr_max_bytes };
        let about = |e: Error| e.during(&format!("run {}: its end", self.owner.run_id)).about_run(self.owner.run_id);
        let columns = ending.output().columns(limits).map_err(about)?;
        let mut writes = self.writes.lock().await;
        if writes.end == Written::Surely {
            return Err(self.report(self.ended_before()));
        }
        match **ending {
            Ending::Succeeded(_) => self.settle_stream(&mut writes, "its end").await?,
            // If the stream of a failed run has a gap, the gap is part of the failure and does not stop the end.
            Ending::Failed(..) => self.stream.settled().await,
        }
        let was = std::mem::replace(&mut writes.end, Written::Perhaps);
        let state = ending.state();
        // A finish whose reply was lost may have been accepted. The row shows it: it has this state, owner and fence.
        let was_done = |s: &RunStatus| {
            let by_us = s.state == state && s.owner == Some(self.owner.incarnation) && s.fence == self.owner.fence;
            by_us.then_some(false)
        };
        let columns = &columns;
        let seq = match **ending {
            Ending::Succeeded(_) => self.stream.going().place().map(|place| place.next),
            Ending::Failed(..) => None,
        };
        let finish =
            async |number| Ok(self.engine.write_end(self.owner, number, ending, columns, seq).await?.then_some(true));
        let began = clock::now();
        let written = self.write(&mut writes, "its end", finish, was_done).await;
        writes.end = match &written {
            Ok(_) => Written::Surely,
            Err(e) if !e.may_have_been_done() => was,
            Err(_) => Written::Perhaps,
        };
        let accepted = written?;
        self.engine.flusher.note_changed(self.owner.run_id, began);
        self.engine.note_finished();
        meters::count(meters::ENDED, "outcome", state);
        if let Ending::Failed(why, _) = &**ending {
            failures::note(&self.engine, self.owner, self.kind(), self.attempt(), why);
        }
        // An earlier call that ended this run may have been dropped. The stored end may be that call's, with another
        // output.
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
        let was_done = |s: &RunStatus| {
            (RunState::Running.is(&s.state) && s.owner.is_none() && s.fence == self.owner.fence).then_some(())
        };
        let mut writes = self.writes.lock().await;
        self.stream.settled().await;
        let stop = self.stop.reason();
        let reason = mobility::reason_of_yield(stop);
        let owner = self.owner;
        let give_back = |number| done(self.engine.write_release(Release { owner, number, reason }));
        self.write(&mut writes, "a yield", give_back, was_done).await?;
        let (registry, now) = (&self.engine.registry, clock::now());
        registry.note_yielded(self.owner.run_id, now);
        if stop == Some(StopReason::Moving) {
            // The other pods have this long to claim the run. After that this pod may, so that the run is not left
            // (L6).
            registry.set_aside(self.owner.run_id, now + self.engine.member.settings.lease);
        }
        self.engine.note_yielded();
        meters::count(meters::ENDED, "outcome", "yielded");
        self.engine.offers.add(self.engine.untold_to_others(self.kind()));
        Ok(())
    }

    /// Makes one fenced write. Retries while the database cannot be reached and nobody has told the run to stop. Each
    /// try carries the write's number. A try that was given up may arrive after later writes, and the number keeps it
    /// from changing anything.
    ///
    /// A statement returns `None` if it found no row. `was_done` then looks at the run's row. If an earlier try was
    /// accepted, `was_done` returns what that try would have returned.
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
                    Ok(status) => {
                        if let Some(written) = status.as_ref().and_then(&was_done) {
                            return Ok(written);
                        }
                        let ended = status.as_ref().is_some_and(|s| RunState::Cancelled.is(&s.state));
                        self.stop.fire(if ended { StopReason::Cancelled } else { StopReason::Fenced });
                        let fenced = runs::fenced(what, self.owner, status.as_ref());
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
                // If the server answered with an error, it has rolled the write back. Any other error may mean that
                // this pod is ending.
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
            // For example, a password was changed or a certificate expired. The run waits, and somebody must act.
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

    /// Whether a small write of the same row ends in time. If it does, then the database, the row's lock and a
    /// synchronous standby are all well, and the other write is too large.
    async fn small_writes_pass(&self) -> bool {
        runs::touch(&self.engine.owners_db, self.owner).await.unwrap_or(false)
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

    /// Refuses a write if the run must not write any more: it was told to stop for good, or its pod is past its
    /// deadline. So the client keeps L7 as well, and sends nothing.
    pub(super) fn refuse_if_over(&self, what: &str) -> Result<()> {
        let reason = match self.stop.reason() {
            Some(reason) if !reason.accepts_writes() => reason,
            _ if self.engine.member.is_past_deadline() => {
                self.stop.fire(StopReason::SelfFenced);
                StopReason::SelfFenced
            }
            _ => return Ok(()),
        };
        let why = match reason {
            StopReason::Cancelled => "the run was cancelled",
            StopReason::SelfFenced => "the pod was silent for too long and gave its runs up",
            StopReason::Moving | StopReason::Draining | StopReason::Fenced => "the run is no longer this attempt's",
        };
        let (run_id, fence) = (self.owner.run_id, self.owner.fence);
        Err(Error::new(ErrorKind::Fenced, format!("run {run_id}: {what} under fence {fence} was not sent: {why}"))
            .about_run(run_id)
            .state("nothing was written")
            .help("stop working on it"))
    }

    pub(super) fn report(&self, error: Error) -> Error {
        metrics::counter!(meters::FENCE_REFUSALS).increment(1);
        tracing::info!(
            target: "podlock", event = "fenced", pod = %self.engine.member.pod_id,
            incarnation = %self.owner.incarnation,
            run = %self.owner.run_id, fence = self.owner.fence.get(), error = %error, "a write was refused"
        );
        error
    }
}

/// Turns "found a row or not" into the result that [`Run::write`] expects of a statement.
pub(super) async fn done(statement: impl Future<Output = Result<bool>>) -> Result<Option<()>> {
    Ok(statement.await?.then_some(()))
}

/// Whether the failure ends without anybody's help. A standby counts: it was a primary a moment ago, so a failover is
/// under way.
fn passes_by_itself(error: &Error) -> bool {
    error.is_transient() || error.kind() == ErrorKind::Standby
}

/// Whether a write waits until the failure passes or somebody fixes its cause.
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
