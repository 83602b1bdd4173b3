//! One attempt: the handler in a task, and its end written down.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;

use super::registry::{Reservation, StopSignal};
use super::{Handler, HandlerError, Outcome, Run, StopReason};
use crate::id::Incarnation;
use crate::pod::shared::Shared;
use crate::postgres::runs::{Claimed, Ending};

/// Begins an attempt in a tracked task of the application's runtime.
pub(crate) fn begin(
    shared: &Arc<Shared>,
    handler: Arc<dyn Handler>,
    place: Reservation<'_>,
    claimed: Claimed,
    incarnation: Incarnation,
) {
    // The pod has ended meanwhile: nobody would resume beside this attempt, and nobody needs it. Its row is an orphan.
    if shared.root.is_cancelled() {
        return;
    }
    let stop = Arc::new(StopSignal::default());
    // A run that was claimed while the pod began to drain or lost its lock is told so from the start.
    let fence = claimed.fence;
    let run = Run::new(Arc::clone(shared), claimed, incarnation, Arc::clone(&stop));
    let task_shared = Arc::clone(shared);
    let grace = shared.settings.stop_grace();
    let held = place.place(shared);
    place.begin(fence, Arc::clone(&stop), || {
        let task = task_shared.tracker.spawn_on(
            async move {
                let _place = held;
                let stop = run.stop_signal();
                tokio::select! {
                    biased;
                    () = attempt(handler, run) => {}
                    // Dropping the attempt is the abort at its next await.
                    () = async { stop.over().cancelled().await; tokio::time::sleep(grace).await } => {}
                }
            },
            &task_shared.runtime,
        );
        task.abort_handle()
    });
    if shared.incarnation() != incarnation {
        stop.fire(StopReason::Fenced);
    }
    if shared.has_given_up(incarnation) {
        stop.fire(StopReason::SelfFenced);
    }
    if shared.phase() == crate::pod::Phase::Draining {
        stop.fire(StopReason::Draining);
    }
}

async fn attempt(handler: Arc<dyn Handler>, run: Run) {
    let called = AssertUnwindSafe(async { handler.call(run.clone()).await }).catch_unwind().await;
    let written = match decide(called, run.stop_reason()) {
        End::Finish(ending) => match run.finish(&ending).await {
            // What the server refuses to store it refuses again: without an end the run would begin anew for ever.
            Err(e) if e.sqlstate().is_some() && !e.is_fenced() && !e.is_transient() => {
                let why = format!("its end could not be stored: {e}").replace('\0', "\u{fffd}");
                run.finish(&Ending::Failed(why)).await
            }
            written => written,
        },
        End::GiveBack => run.give_back().await,
        End::Nothing => Ok(()),
    };
    if let Err(e) = written
        && !e.is_fenced()
    {
        tracing::error!(target: "podlock", event = "end_unwritten", run = %run.id(), fence = run.fence().get(), error = %e, "the run's end could not be written; another attempt will be made");
    }
}

/// How an attempt ends.
#[derive(Debug, PartialEq)]
enum End {
    Finish(Ending),
    GiveBack,
    /// The run is no longer ours to end.
    Nothing,
}

/// A handler that fails after it was told to stop has, most likely, failed because of it: its run is not failed.
fn decide(called: Result<Result<Outcome, HandlerError>, Box<dyn Any + Send>>, stop: Option<StopReason>) -> End {
    match (called, stop) {
        (Err(panic), _) => End::Finish(Ending::Failed(format!("the handler panicked: {}", text_of(&*panic)))),
        (Ok(Ok(Outcome::Done(result))), _) => End::Finish(Ending::Succeeded(result)),
        (Ok(Ok(Outcome::Yield)), _) | (Ok(Err(_)), Some(StopReason::Draining)) => End::GiveBack,
        (Ok(Err(_)), Some(_)) => End::Nothing,
        (Ok(Err(e)), None) => End::Finish(Ending::Failed(crate::postgres::errors::chain(&*e))),
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error() -> HandlerError {
        "broken".into()
    }

    #[test]
    fn how_an_attempt_ends_follows_from_what_the_handler_did_and_whether_it_was_told_to_stop() {
        let done = || Ok(Ok(Outcome::Done(json!(1))));
        let succeeded = || End::Finish(Ending::Succeeded(json!(1)));
        let all = [None, Some(StopReason::Draining), Some(StopReason::Cancelled), Some(StopReason::Fenced)];
        for stop in all {
            assert_eq!(decide(done(), stop), succeeded(), "the fence judges, not we: {stop:?}");
            assert_eq!(decide(Ok(Ok(Outcome::Yield)), stop), End::GiveBack, "{stop:?}");
            let panicked = decide(Err(Box::new("boom")), stop);
            assert_eq!(panicked, End::Finish(Ending::Failed("the handler panicked: boom".into())), "{stop:?}");
        }
        assert_eq!(decide(Ok(Err(error())), None), End::Finish(Ending::Failed("broken".into())));
        assert_eq!(decide(Ok(Err(error())), Some(StopReason::Draining)), End::GiveBack);
        assert_eq!(decide(Ok(Err(error())), Some(StopReason::SelfFenced)), End::Nothing);
    }
}
