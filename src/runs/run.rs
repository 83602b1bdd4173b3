//! A run in the hands of its handler.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::StopReason;
use super::guard;
use super::registry::StopSignal;
use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Fence, Incarnation, PodId, RunId};
use crate::pod::shared::Shared;
use crate::postgres::runs::{self, Claimed, Ending, Owner, Standing};

/// Delays between tries of a write while the database cannot be reached.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(500);

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
}

impl Run {
    pub(super) fn new(shared: Arc<Shared>, facts: Claimed, incarnation: Incarnation, stop: Arc<StopSignal>) -> Self {
        let owner = Owner { run_id: facts.run_id, incarnation, fence: facts.fence };
        Self { shared, facts: Arc::new(facts), owner, stop }
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
    /// A dropped call may or may not have saved the value; calling again is safe.
    pub async fn checkpoint(&self, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        let db = &self.shared.db;
        self.write("a checkpoint", || runs::checkpoint(db, self.owner, &value), |_| false).await
    }

    /// Guards a transaction of the handler's own, on a connection to the same database: it can be committed only while the
    /// run is this attempt's, and nobody claims, checkpoints or ends the run before it has ended. Call it before the first
    /// statement that the fence is to protect, and not behind a savepoint, to which it could be rolled back.
    ///
    /// Until the end of the transaction its `statement_timeout`, `idle_in_transaction_session_timeout` and `tcp_user_timeout`
    /// are half of the lease at most, so that a handler that froze does not keep its run from others. Keep it short, and do
    /// not await [`Run::checkpoint`] inside of it: that waits for the transaction, and the transaction for it, until the
    /// server ends it for being idle. Under `REPEATABLE READ` and `SERIALIZABLE` a run that was written to since
    /// the transaction's first statement fails with SQLSTATE 40001: begin the transaction again.
    /// [With an example](crate::guards).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Fenced`] if the run is no longer this attempt's: stop working on it. Others as the server's. After any
    /// error the transaction cannot be committed any more.
    ///
    /// # Cancel safety
    ///
    /// After a dropped call, roll the transaction back.
    pub async fn guard(&self, txn: &tokio_postgres::Transaction<'_>) -> Result<()> {
        let over = self.refuse_if_over("a guard").err();
        let taken = guard::take(&self.shared, self.owner, &self.stop, over, txn).await;
        taken.map_err(|e| if e.is_fenced() { self.report(e) } else { e })
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
        let was_done =
            |s: &Standing| s.state == state && s.owner == Some(self.owner.incarnation) && s.fence == self.owner.fence;
        self.write("its end", || runs::finish(db, self.owner, ending), was_done).await?;
        self.shared.note_finished();
        Ok(())
    }

    pub(super) async fn give_back(&self) -> Result<()> {
        let db = &self.shared.db;
        let was_done = |s: &Standing| s.state == "running" && s.owner.is_none() && s.fence == self.owner.fence;
        self.write("a yield", || runs::give_back(db, self.owner), was_done).await?;
        self.shared.registry.note_yielded(self.owner.run_id, crate::pod::clock::now());
        self.shared.note_yielded();
        Ok(())
    }

    /// One fenced write, repeated while the database cannot be reached and nobody told the run to stop.
    async fn write<F>(&self, what: &str, statement: impl Fn() -> F, was_done: impl Fn(&Standing) -> bool) -> Result<()>
    where
        F: Future<Output = Result<bool>>,
    {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        // Whether a try may have been accepted although its reply never came.
        let mut in_doubt = false;
        let told = |error: Error, in_doubt| if in_doubt { error.after_a_lost_reply() } else { error };
        loop {
            self.refuse_if_over(what).map_err(|e| self.report(told(e, in_doubt)))?;
            let error = match statement().await {
                Ok(true) => {
                    self.shared.accepted_writes.fetch_add(1, Ordering::AcqRel);
                    return Ok(());
                }
                Ok(false) => match runs::standing(&self.shared.db, self.owner.run_id).await {
                    Ok(Some(standing)) if was_done(&standing) => return Ok(()),
                    Ok(standing) => {
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
            // A standby that was a primary a moment ago: a failover is under way.
            let lasting = !error.is_transient() && error.kind() != ErrorKind::Standby;
            if lasting && !error.is_unconnected() {
                let error = error.during(&format!("run {}: {what}", self.owner.run_id)).about_run(self.owner.run_id);
                // What the server answered with an error it undid; anything else may be the end of the pod.
                let answered = error.sqlstate().is_some();
                let error = if answered { error.left("nothing was written; the run goes on") } else { error };
                return Err(told(error, in_doubt));
            }
            // A password that was changed, a certificate that ran out: the run waits for it, and somebody has to know.
            if lasting {
                tracing::warn!(target: "podlock", event = "write_retried", run = %self.owner.run_id, error = %error, "no connection, and it needs a hand; trying again");
            }
            tracing::debug!(target: "podlock", event = "write_retried", run = %self.owner.run_id, error = %error, "trying again");
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
