//! Waits until a pod should stop, then stops it cleanly: the end of most services' `main`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{Pod, ShutdownReport};
use crate::error::{Error, ErrorKind, Result};

/// A signal that asks a process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[non_exhaustive]
pub enum StopSignal {
    /// SIGTERM: an orchestrator sends it.
    Sigterm,
    /// SIGINT: Ctrl-C.
    Sigint,
}

impl StopSignal {
    /// The signal's number. A shell reports a process that the signal ended with the status 128 + this number.
    const fn number(self) -> i32 {
        match self {
            Self::Sigterm => 15,
            Self::Sigint => 2,
        }
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sigterm => "SIGTERM",
            Self::Sigint => "SIGINT",
        })
    }
}

/// Why a pod was stopped by [`Pod::until_stopped`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StopCause {
    /// The process received a signal.
    Signal(StopSignal),
    /// Somebody asked the pod to drain: `podlock drain`, `studio_drain`, [`Operator::drain`](crate::Operator::drain).
    DrainRequested,
    /// [`Pod::shutdown`] was called on another handle.
    Shutdown,
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => signal.fmt(f),
            Self::DrainRequested => f.write_str("a drain request"),
            Self::Shutdown => f.write_str("a shutdown"),
        }
    }
}

/// A clean stop: its cause, and how the runs ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stopped {
    /// Why the pod was stopped.
    pub cause: StopCause,
    /// How its runs ended.
    pub report: ShutdownReport,
}

/// The signals that this process has received since this value was made.
pub(crate) struct Signals {
    heard: watch::Receiver<Heard>,
    /// The only writer of `heard`. The task ends with the last handle of the pod.
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    count: u64,
    last: Option<StopSignal>,
}

impl Signals {
    /// Starts to listen. From then on, SIGTERM and SIGINT no longer end the process by themselves.
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|e| {
                Error::new(ErrorKind::Unsupported, format!("the process cannot listen for signals: {e}"))
                    .state("no pod was started or stopped")
                    .help("call from a tokio runtime with IO enabled, or see the limits of the process")
                    .caused_by(e)
            })
        };
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let (sender, heard) = watch::channel(Heard::default());
        let task = tokio::spawn(async move {
            loop {
                let came = tokio::select! {
                    Some(()) = terminate.recv() => StopSignal::Sigterm,
                    Some(()) = interrupt.recv() => StopSignal::Sigint,
                    else => return,
                };
                sender.send_modify(|heard| *heard = Heard { count: heard.count + 1, last: Some(came) });
            }
        });
        Ok(Self { heard, _task: AbortOnDropHandle::new(task) })
    }

    /// Waits until the process has received more than `known` signals. Returns the last one and their number.
    pub(crate) async fn after(&self, known: u64) -> (StopSignal, u64) {
        let mut heard = self.heard.clone();
        match heard.wait_for(|heard| heard.count > known).await.map(|heard| *heard) {
            Ok(Heard { count, last: Some(signal) }) => (signal, count),
            // The runtime is shutting down: no signal comes any more.
            _ => std::future::pending().await,
        }
    }
}

impl Pod {
    /// Waits until the pod should stop, then stops it cleanly within `grace`, as [`Pod::shutdown`] does: the whole end
    /// of a service's `main`. The pod should stop at SIGTERM, at SIGINT (Ctrl-C), at a drain request, and when another
    /// handle shuts it down. Keep `grace` below the deployment's `terminationGracePeriodSeconds`.
    ///
    /// A second signal ends the process at once, with the status 128 + the signal's number and without running any
    /// destructor. Other pods then take over the runs, as after a crash. The first signal after a drain request counts
    /// as the first one, and the drain goes on.
    ///
    /// If the pod was built with [`PodBuilder::stop_on_signals`](super::PodBuilder::stop_on_signals), signals count
    /// from before the start of the pod. Otherwise they count from the first poll of this call. An earlier signal then
    /// ends the process as the system does it, which is a crash for the pod's peers.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stopped`] with [`Pod::failure`] if the pod ended by itself; [`ErrorKind::Stuck`] as of
    /// [`Pod::shutdown`]; [`ErrorKind::Unsupported`] if the process cannot listen for signals.
    ///
    /// # Cancel safety
    ///
    /// As [`Pod::shutdown`]: a dropped call that held the last handle ends the pod at once. From the first poll on,
    /// SIGTERM and SIGINT no longer end the process by themselves.
    pub async fn until_stopped(self, grace: Duration) -> Result<Stopped> {
        let signals = match &self.signals {
            Some(signals) => Arc::clone(signals),
            None => Arc::new(Signals::listen()?),
        };
        let (cause, known) = tokio::select! {
            biased;
            () = self.closed() => (StopCause::Shutdown, 0),
            (signal, count) = signals.after(0) => (StopCause::Signal(signal), count),
            () = self.drain_requested() => (StopCause::DrainRequested, 0),
        };
        let name = self.pod_id().clone();
        let failure = self.failure().map(ToOwned::to_owned);
        tracing::info!(target: "podlock", event = "stopping", pod = %name, cause = %cause, "the pod is to stop");
        let stop = self.shutdown(grace);
        tokio::pin!(stop);
        // A drain request is no signal. The first signal after it changes nothing: the stop is already in progress.
        let mut left = if matches!(cause, StopCause::Signal(_)) { 1 } else { 2 };
        let mut known = known;
        let report = loop {
            tokio::select! {
                biased;
                report = &mut stop => break report?,
                (signal, count) = signals.after(known) => {
                    left -= (count - known).min(left);
                    known = count;
                    if left == 0 {
                        end_at_once(&name, signal);
                    }
                }
            }
        };
        match failure {
            None => Ok(Stopped { cause, report }),
            Some(why) => Err(Error::new(ErrorKind::Stopped, format!("pod {name} has ended by itself: {why}"))
                .state("its runs were told to stop; survivors take them over")
                .help("start the process again")),
        }
    }
}

/// Ends the process without running destructors: they would wait, and the sender of a second signal wants no wait. The
/// server frees the lock when the sockets close, and a peer takes over the runs.
fn end_at_once(pod: &crate::PodId, signal: StopSignal) -> ! {
    tracing::warn!(target: "podlock", event = "cut_short", pod = %pod, signal = %signal, "a second signal: ending at once");
    std::process::exit(128 + signal.number());
}
