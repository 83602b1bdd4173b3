//! Reports runs that failed: each in a line of this process's log, and a batch at a time in the event log.

use std::sync::Arc;

use super::engine::Engine;
use crate::background::part::{Next, Part};
use crate::membership::clock;
use crate::protocol::Moment;
use crate::protocol::failures::{GAP, beginning};
use crate::protocol::stream::send_at;
use crate::store::history;
use crate::store::runs::Owner;

/// Records that a run of this pod was ended as failed.
pub(crate) fn note(engine: &Engine, owner: Owner, kind: &str, attempt: i32, error: &str) {
    tracing::warn!(
        target: "podlock", event = "run_failed", pod = %engine.member.pod_id, incarnation = %owner.incarnation,
        run = %owner.run_id, kind, fence = owner.fence.get(), attempt, error = &*beginning(error), "a run failed"
    );
    engine.failures.note(kind, owner.run_id, error);
}

/// Writes failures to the event log: at once after a quiet time, otherwise when the gap has passed.
pub(crate) struct Telling {
    engine: Arc<Engine>,
    last: Option<Moment>,
}

impl Telling {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine, last: None }
    }
}

impl Part for Telling {
    const NAME: &'static str = "the failures";

    async fn woken(&mut self) {
        self.engine.failures.some().await;
        let now = clock::now();
        let at = send_at(now, self.last, false, GAP);
        if at > now {
            tokio::time::sleep(at - now).await;
        }
    }

    async fn work(&mut self) -> Next {
        self.last = Some(clock::now());
        tell(&self.engine).await;
        Next::Wait
    }
}

/// Writes the failures that the event log does not have yet.
pub(crate) async fn tell(engine: &Engine) {
    let failed = engine.failures.take();
    if failed.is_empty() {
        return;
    }
    if let Err(e) =
        history::note_failures(&engine.db, &engine.member.pod_id, engine.member.incarnation(), &failed).await
    {
        if e.is_transient() {
            tracing::debug!(
                target: "podlock", event = "failures_untold", pod = %engine.member.pod_id, error = %e,
                "the event log does not tell of failed runs yet; their rows do"
            );
        } else {
            tracing::warn!(
                target: "podlock", event = "failures_untold", pod = %engine.member.pod_id, error = %e,
                "the event log does not tell of failed runs; their rows do"
            );
        }
        if !e.may_have_been_done() {
            engine.failures.put_back(failed);
        }
    }
}
