//! Runs: the long work of a service. A run survives the death of the pod that executes it: another pod resumes it.

pub(crate) mod backlog;
mod claim;
pub(crate) mod engine;
pub(crate) mod execute;
mod failed;
pub(crate) mod failures;
mod guard;
pub(crate) mod handlers;
pub(crate) mod herald;
mod mobility;
pub(crate) mod moving;
mod offers;
mod passed_over;
pub(crate) mod pulse;
pub(crate) mod recover;
pub(crate) mod registry;
pub(crate) mod run;
mod start;
pub(crate) mod stream;
pub(crate) mod writer;

use std::future::Future;
use std::pin::Pin;

use serde::Serialize;
use serde_json::Value;

use crate::id::{Fence, Incarnation, RunId};
use crate::output::Output;
use crate::protocol::named;

pub use run::Run;
pub(crate) use start::{insert_in_txn, only, start, submit};
pub use stream::CHUNK_LIMIT;
#[cfg(feature = "http")]
pub(crate) use stream::attach::cut_off;
pub use stream::attach::{Attached, StreamPosition};
pub use stream::event::StreamEvent;

/// Any error of a handler.
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

/// How an attempt ends. A handler returns it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// The run succeeded, with this result.
    Done(Value),
    /// The run ends with this output. It has succeeded, unless [`Output::error`] says why it failed.
    Output(Output),
    /// The run has ended already. [`Run::finish`] returns this.
    Finished,
    /// The run is released. Nobody owns it then, and any pod with a handler and room claims it. No crash is counted.
    Yield,
}

impl From<Value> for Outcome {
    fn from(result: Value) -> Self {
        Self::Done(result)
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self::Output(output)
    }
}

named! {
    /// Why a run is told to stop. Later ones outrank earlier ones.
    #[derive(Serialize)]
    #[serde(rename_all = "snake_case")]
    #[non_exhaustive]
    pub enum StopReason {
        /// The pod has more than its share of the runs, and asks this one to move ([`NewRun::movable`]). Writes are
        /// still accepted: save a checkpoint and yield. Nothing happens to a handler that goes on.
        Moving = "moving",
        /// The pod is shutting down. Writes are still accepted: finish, or save a checkpoint and yield.
        Draining = "draining",
        /// Somebody cancelled the run. No write is accepted any more.
        Cancelled = "cancelled",
        /// The pod was silent for too long (L7). A peer may claim the run at any moment.
        SelfFenced = "self_fenced",
        /// The run belongs to another attempt, or the pod was buried.
        Fenced = "fenced",
    }
}

impl StopReason {
    /// Whether writes are still accepted: the handler can save a checkpoint and return [`Outcome::Yield`].
    #[must_use]
    pub const fn accepts_writes(self) -> bool {
        match self {
            Self::Moving | Self::Draining => true,
            Self::Cancelled | Self::SelfFenced | Self::Fenced => false,
        }
    }
}

/// A run to start.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct NewRun {
    pub(crate) kind: String,
    pub(crate) key: Option<String>,
    pub(crate) input: Value,
    pub(crate) movable: bool,
    pub(crate) traceparent: Option<String>,
}

impl NewRun {
    /// Makes a run of this kind, without a key and with the input `null`.
    pub fn new(kind: impl Into<String>) -> Self {
        Self { kind: kind.into(), key: None, input: Value::Null, movable: false, traceparent: None }
    }

    /// Sets the key. At most one run of the same kind and key is running at a time.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the input. The handler reads it with [`Run::input`].
    pub fn input(mut self, input: impl Into<Value>) -> Self {
        self.input = input.into();
        self
    }

    /// Sets whether the run may move; by default it may not. A pod with more than its share of the runs then asks the
    /// run to yield ([`StopReason::Moving`]), so that a less busy pod goes on from its checkpoint. A run is asked only
    /// if its attempt has saved a checkpoint and has lasted for `move_rest`. Set it for long runs that resume cheaply.
    pub fn movable(mut self, movable: bool) -> Self {
        self.movable = movable;
        self
    }

    /// Sets the trace that the run belongs to, as the header `traceparent` of W3C Trace Context has it, version 00:
    /// `00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01`. It is kept in the run's row, and each attempt gets
    /// it, whichever pod makes it ([`Run::traceparent`]). By default the run begins a trace of its own, which is marked
    /// as sampled. Another text is refused when the run is started.
    pub fn traceparent(mut self, traceparent: impl Into<String>) -> Self {
        self.traceparent = Some(traceparent.into());
        self
    }
}

/// A run that was started, and that this pod executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Started {
    /// The run.
    pub run_id: RunId,
    /// The run's owner: the current incarnation of this pod.
    pub incarnation: Incarnation,
    /// The fence of the run's first attempt.
    pub fence: Fence,
}

type BoxFuture = Pin<Box<dyn Future<Output = Result<Outcome, HandlerError>> + Send>>;

/// Executes the runs of one kind. Every suitable closure implements it.
pub(crate) trait Handler: Send + Sync {
    fn call(&self, run: Run) -> BoxFuture;
}

impl<F, Fut> Handler for F
where
    F: Fn(Run) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Outcome, HandlerError>> + Send + 'static,
{
    fn call(&self, run: Run) -> BoxFuture {
        Box::pin(self(run))
    }
}
