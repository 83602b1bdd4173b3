//! Runs: what a service does, so that it survives the pod that does it.

mod claim;
pub(crate) mod engine;
pub(crate) mod execute;
pub(crate) mod failures;
mod guard;
mod passed_over;
pub(crate) mod recover;
pub(crate) mod registry;
pub(crate) mod run;
mod start;
pub(crate) mod stream;

use std::future::Future;
use std::pin::Pin;

use serde::Serialize;
use serde_json::Value;

use crate::id::{Fence, Incarnation, RunId};
use crate::output::Output;
use crate::protocol::named;

pub use run::Run;
pub(crate) use start::{insert_in_txn, start, submit};
pub use stream::CHUNK_LIMIT;
#[cfg(feature = "http")]
pub(crate) use stream::attach::cut_off;
pub use stream::attach::{Attached, StreamEvent, StreamPosition};

/// Any error of a handler.
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

/// What a handler ends with.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// The run succeeded, with this result.
    Done(Value),
    /// The run ends with this output: as succeeded, or as failed if [`Output::error`] says why.
    Output(Output),
    /// The run has ended: what [`Run::finish`] returns.
    Finished,
    /// The run is given back: nobody owns it, and any pod with a handler and room takes it up. No crash is counted.
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
        /// The pod is stopping. Writes are still accepted: finish, or save a checkpoint and yield.
        Draining = "draining",
        /// Somebody cancelled the run. Nothing more is accepted.
        Cancelled = "cancelled",
        /// The pod was silent for too long (L7): a peer may take the run over at any moment.
        SelfFenced = "self_fenced",
        /// The run belongs to another attempt, or the pod was buried.
        Fenced = "fenced",
    }
}

/// A run to start.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct NewRun {
    pub(crate) kind: String,
    pub(crate) key: Option<String>,
    pub(crate) input: Value,
}

impl NewRun {
    /// A run of this kind, without key and with the input `null`.
    pub fn new(kind: impl Into<String>) -> Self {
        Self { kind: kind.into(), key: None, input: Value::Null }
    }

    /// Of one kind and key, at most one run is running.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// What the handler finds in [`Run::input`].
    pub fn input(mut self, input: impl Into<Value>) -> Self {
        self.input = input.into();
        self
    }
}

/// A run that was started and that this pod runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Started {
    /// The run.
    pub run_id: RunId,
    /// Its owner: this pod, as registered now.
    pub incarnation: Incarnation,
    /// The fence of its first attempt.
    pub fence: Fence,
}

type BoxFuture = Pin<Box<dyn Future<Output = Result<Outcome, HandlerError>> + Send>>;

/// What runs the runs of one kind. Implemented for every suitable closure.
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
