//! One attempt: runs the handler in a task, and stores how the attempt ends.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use tracing::Instrument as _;

use super::engine::Engine;
use super::mobility::Mobility;
use super::registry::{Reservation, StopSignal};
use super::{Handler, HandlerError, Outcome, Run, StopReason};
use crate::error::{Error, ErrorKind, chain};
use crate::id::Incarnation;
use crate::output::Output;
use crate::store::runs::{Claimed, Ending};

/// Begins an attempt in a tracked task of the application's runtime.
pub(crate) fn begin(
    engine: &Arc<Engine>,
    handler: Arc<dyn Handler>,
    place: Reservation<'_>,
    claimed: Claimed,
    incarnation: Incarnation,
) {
    // The pod has ended meanwhile. Nobody needs this attempt, so it does not begin. Its row is an orphan.
    if engine.member.root.is_cancelled() {
        return;
    }
    engine.note_begun(incarnation);
    let stop = Arc::new(StopSignal::default());
    // The run may have been claimed while the pod began to drain or lost its lock. Then it is told to stop from the
    // start.
    let fence = claimed.fence;
    let mobility = claimed.movable.then(|| Arc::new(Mobility::of_attempt(&claimed.kind)));
    let run = Run::new(Arc::clone(engine), claimed, incarnation, Arc::clone(&stop), mobility.clone());
    let task_engine = Arc::clone(engine);
    let grace = engine.member.settings.stop_grace();
    let held = place.slot(&engine.registry);
    place.begin(fence, Arc::clone(&stop), mobility, || {
        // Boxed, because a spawn copies its future from function to function, eight times.
        let task = Box::pin(async move {
            let _place = held;
            let stop = run.stop_signal();
            tokio::select! {
                biased;
                () = traced(handler, run) => {}
                // This drops the handler's future, which aborts the handler at its next await.
                () = async { stop.over().cancelled().await; tokio::time::sleep(grace).await } => {}
            }
        });
        task_engine.member.tracker.spawn_on(task, &task_engine.member.runtime).abort_handle()
    });
    if engine.member.incarnation() != incarnation {
        stop.fire(StopReason::Fenced);
    }
    if engine.member.has_given_up(incarnation) {
        stop.fire(StopReason::SelfFenced);
    }
    if engine.member.phase() == crate::membership::Phase::Draining {
        stop.fire(StopReason::Draining);
    }
}

/// One attempt in its span. The service may first say what the span belongs to.
async fn traced(handler: Arc<dyn Handler>, run: Run) {
    let span = run.span();
    if let (Some(on_attempt), Some(traceparent)) = (&run.engine.on_attempt, run.traceparent())
        && std::panic::catch_unwind(AssertUnwindSafe(|| on_attempt(traceparent, &span))).is_err()
    {
        tracing::error!(
            target: "podlock", event = "hook_panicked", pod = %run.pod_id(),
            "the hook for attempts panicked; the attempt goes on"
        );
    }
    attempt(handler, run).instrument(span).await;
}

async fn attempt(handler: Arc<dyn Handler>, run: Run) {
    let called = AssertUnwindSafe(async { handler.call(run.clone()).await }).catch_unwind().await;
    // Boxed when it begins, so that a run that waits does not hold the several kilobytes that the write of its end needs.
    Box::pin(conclude(called, run)).await;
}

/// What the handler returned, or its panic.
type Called = Result<Result<Outcome, HandlerError>, Box<dyn Any + Send>>;

/// Stores how the attempt ends.
async fn conclude(called: Called, run: Run) {
    if run.has_ended().await {
        let after = match &called {
            Ok(Ok(Outcome::Finished)) => return,
            Ok(Ok(Outcome::Yield)) => "it yielded".to_owned(),
            Ok(Ok(_)) => "it returned an output".to_owned(),
            Ok(Err(e)) => chain(&**e),
            Err(panic) => format!("it panicked: {}", text_of(&**panic)),
        };
        tracing::warn!(
            target: "podlock", event = "outcome_ignored", run = %run.id(), fence = run.fence().get(), after,
            "the run had been finished by its handler, and stays so"
        );
        return;
    }
    let written = match decide(called, run.stop_reason()) {
        AttemptEnd::Finish(ending) => match run.end(&Arc::new(ending)).await {
            // An end that the server refuses is refused at each try. Without an end the run would begin again for ever,
            // so it is ended as failed.
            Err(e) if is_about_the_end(&e) => {
                let why = format!("its end could not be stored: {e}").replace('\0', "\u{fffd}");
                run.end(&Arc::new(Ending::Failed(why, Output::default()))).await
            }
            written => written,
        },
        AttemptEnd::GiveBack => run.give_back().await,
        AttemptEnd::Nothing => Ok(()),
    };
    if let Err(e) = written
        && !e.is_fenced()
    {
        tracing::error!(
            target: "podlock", event = "end_unwritten", run = %run.id(), fence = run.fence().get(), error = %e,
            "the run's end could not be written; another attempt will be made"
        );
    }
}

/// Whether the end itself cannot be stored.
fn is_about_the_end(error: &Error) -> bool {
    let refused_by_us = matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::InvalidInput | ErrorKind::TooSlow);
    refused_by_us || (error.sqlstate().is_some() && !error.is_fenced() && !error.is_transient())
}

/// How an attempt ends.
#[derive(Debug, PartialEq)]
enum AttemptEnd {
    Finish(Ending),
    GiveBack,
    /// This attempt may no longer end the run.
    Nothing,
}

/// Decides how the attempt ends. A handler that fails after it was told to stop most likely failed because of that. Its
/// run is not ended as failed.
fn decide(called: Called, stop: Option<StopReason>) -> AttemptEnd {
    match (called, stop) {
        (Err(panic), _) => failed(format!("the handler panicked: {}", text_of(&*panic))),
        (Ok(Ok(Outcome::Done(result))), _) => AttemptEnd::Finish(Ending::of(result.into())),
        (Ok(Ok(Outcome::Output(output))), _) => AttemptEnd::Finish(Ending::of(output)),
        (Ok(Ok(Outcome::Finished)), _) => {
            failed("the handler returned Outcome::Finished, and had not finished the run".to_owned())
        }
        (Ok(Ok(Outcome::Yield)), _) => AttemptEnd::GiveBack,
        (Ok(Err(_)), Some(reason)) if reason.accepts_writes() => AttemptEnd::GiveBack,
        (Ok(Err(_)), Some(_)) => AttemptEnd::Nothing,
        (Ok(Err(e)), None) => failed(chain(&*e)),
    }
}

fn failed(why: String) -> AttemptEnd {
    AttemptEnd::Finish(Ending::Failed(why, Output::default()))
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
        let succeeded = || AttemptEnd::Finish(Ending::Succeeded(Output::value(1)));
        for stop in StopReason::ALL.map(Some).into_iter().chain([None]) {
            assert_eq!(decide(done(), stop), succeeded(), "the fence judges, not we: {stop:?}");
            assert_eq!(decide(Ok(Ok(Outcome::Yield)), stop), AttemptEnd::GiveBack, "{stop:?}");
            let panicked = decide(Err(Box::new("boom")), stop);
            assert_eq!(panicked, failed("the handler panicked: boom".into()), "{stop:?}");
            let output = || Output::text("out").with_exit_code(3);
            let with_output = |output| decide(Ok(Ok(Outcome::Output(output))), stop);
            assert_eq!(with_output(output()), AttemptEnd::Finish(Ending::Succeeded(output())), "{stop:?}");
            let broken = output().fail_unless_exit_0();
            let ending = Ending::Failed("exit code 3".into(), broken.clone());
            assert_eq!(with_output(broken), AttemptEnd::Finish(ending), "{stop:?}");
            let lied = decide(Ok(Ok(Outcome::Finished)), stop);
            assert!(matches!(&lied, AttemptEnd::Finish(Ending::Failed(..))), "{lied:?}");
        }
        assert_eq!(decide(Ok(Err(error())), None), failed("broken".into()));
        assert_eq!(decide(Ok(Err(error())), Some(StopReason::Draining)), AttemptEnd::GiveBack);
        assert_eq!(decide(Ok(Err(error())), Some(StopReason::Moving)), AttemptEnd::GiveBack);
        assert_eq!(decide(Ok(Err(error())), Some(StopReason::SelfFenced)), AttemptEnd::Nothing);
    }
}
