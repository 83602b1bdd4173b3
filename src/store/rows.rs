//! What the statements on runs take and return.

use serde_json::Value;

use crate::id::{Fence, Incarnation, RunId};
use crate::output::Output;

/// A run to insert.
#[derive(Clone, Debug)]
pub(crate) struct Insert<'a> {
    pub(crate) run_id: RunId,
    pub(crate) kind: &'a str,
    pub(crate) key: Option<&'a str>,
    pub(crate) input: &'a Value,
    /// Whether it may move to a less busy pod.
    pub(crate) movable: bool,
    /// The trace that it belongs to.
    pub(crate) traceparent: &'a str,
    /// The highest fence that this process was ever given. The fence of an owned run must be above it.
    pub(crate) floor: Fence,
}

/// The result of an insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// The run exists under this fence. The fence is 0 if nobody owns the run.
    Yes(Fence),
    /// A running run of this kind has the key.
    KeyBusy(RunId, Holder),
    /// The incarnation that should own the run is not in the roster, or drains.
    NoOwner,
    /// The pod that should own the run is cordoned.
    Cordoned,
}

/// Who owns the run that has the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A pod, and the roster has it.
    Pod,
    /// A pod that has left the roster.
    Gone,
    /// Nobody. The run waits for a pod with a handler and room.
    Nobody,
}

/// A claimed run, with everything that a handler needs.
#[derive(Clone, Debug)]
pub(crate) struct Claimed {
    pub(crate) run_id: RunId,
    pub(crate) kind: String,
    pub(crate) key: Option<String>,
    pub(crate) fence: Fence,
    pub(crate) attempt: i32,
    pub(crate) input: Value,
    pub(crate) checkpoint: Option<Value>,
    /// How many chunks the stream had at the checkpoint.
    pub(crate) checkpoint_seq: i64,
    /// How many owners in a row crashed while they ran it.
    pub(crate) crashes: u32,
    /// Whether it may move to a less busy pod.
    pub(crate) movable: bool,
    /// The trace that it belongs to. `None`: an older version, or another program, made the run.
    pub(crate) traceparent: Option<String>,
    /// How the attempt before ended. `None`: this is the first attempt.
    pub(crate) taken_over: Option<&'static str>,
}

/// A run that the claim quarantined instead of claiming it.
#[derive(Clone, Debug)]
pub(crate) struct Quarantined {
    pub(crate) run_id: RunId,
    pub(crate) kind: String,
    /// Which owners died while they ran it.
    pub(crate) error: String,
}

/// The result of a claim.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    pub(crate) claimed: Vec<Claimed>,
    /// Runs that were claimed, but whose input and checkpoint must still be read ([`super::payloads`]). The number is
    /// the bytes that these use in the table, where they may be compressed.
    pub(crate) unread: Vec<(Claimed, i64)>,
    /// Runs that were claimed, but that nobody could begin.
    pub(crate) unreadable: Vec<Unreadable>,
    pub(crate) quarantined: Vec<Quarantined>,
}

/// A claimed run whose input or checkpoint cannot be read.
#[derive(Clone, Debug)]
pub(crate) struct Unreadable {
    pub(crate) owner: Owner,
    pub(crate) kind: String,
    pub(crate) attempt: i32,
    pub(crate) why: String,
}

/// The writing owner, for the WHERE clause of every write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) run_id: RunId,
    pub(crate) incarnation: Incarnation,
    pub(crate) fence: Fence,
}

/// How an owner ends its run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ending {
    Succeeded(Output),
    /// The run failed: the reason, and its output until then.
    Failed(String, Output),
}

impl Ending {
    pub(crate) fn of(output: Output) -> Self {
        match output.error().map(ToOwned::to_owned) {
            None => Self::Succeeded(output),
            Some(why) => Self::Failed(why, output),
        }
    }

    pub(crate) fn output(&self) -> &Output {
        let (Self::Succeeded(output) | Self::Failed(_, output)) = self;
        output
    }

    /// The run's state after this end.
    pub(crate) fn state(&self) -> &'static str {
        match self {
            Self::Succeeded(_) => "succeeded",
            Self::Failed(..) => "failed",
        }
    }

    /// Why it failed, if it did.
    pub(crate) fn error(&self) -> Option<&str> {
        match self {
            Self::Succeeded(_) => None,
            Self::Failed(why, _) => Some(why),
        }
    }
}

/// The state of a run, for an owner whose write found no row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunStatus {
    pub(crate) state: String,
    pub(crate) owner_pod: Option<String>,
    pub(crate) owner: Option<Incarnation>,
    pub(crate) fence: Fence,
}
