//! Statements on runs. The returned rows say what a statement changed. Each condition on which a plan relies is
//! repeated in the statement that acts on it. [`start`], [`claim`] and the writes of an owner (L5) have files of their
//! own.

use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

pub(crate) use super::claim::{Claimer, claim, warm_up_claim};
pub(crate) use super::owner_writes::{checkpoint, finish, give_back, touch};
pub(crate) use super::start::{insert_in_txn, restart, start, submit};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Fence, Incarnation, PodId, RunId};
use crate::output::Output;
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::statement::sql;
use crate::protocol::notices::{NOBODY, StreamNotice};

/// A run to insert.
#[derive(Clone, Debug)]
pub(crate) struct Insert<'a> {
    pub(crate) run_id: RunId,
    pub(crate) kind: &'a str,
    pub(crate) key: Option<&'a str>,
    pub(crate) input: &'a Value,
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

/// The result of a cancellation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cancelled {
    /// This call cancelled the run. Its owner, if there is one, was notified.
    Now,
    /// The run had ended before, in this state.
    AlreadyEnded {
        /// `succeeded`, `failed`, `cancelled` or `quarantined`.
        state: String,
    },
    /// There is no such run.
    NotFound,
}

/// Finds another running run with the kind and key of this one.
pub(crate) async fn holder_of_key(db: &Database, run_id: RunId) -> Result<Option<RunId>> {
    const SQL: &str = sql!("find_rival_of_key");
    let row = db.query_opt("looking who has the key", SQL, &[&run_id.as_uuid()]).await?;
    row.map(|row| Ok(row.at::<Uuid>("run_id")?.into())).transpose()
}

/// Finds the running run of this kind and key, or else the newest one that has ended.
pub(crate) async fn latest(db: &Database, kind: &str, key: &str) -> Result<Option<RunId>> {
    let row = db.query_opt("looking for the run of a key", sql!("find_latest_run"), &[&kind, &key]).await?;
    row.map(|row| Ok(row.at::<Uuid>("run_id")?.into())).transpose()
}

/// Reads the state of a run.
pub(crate) async fn status(db: &Database, run_id: RunId) -> Result<Option<RunStatus>> {
    status_for("reading where a run stands", db, run_id).await
}

/// The same as [`status`], as a part of the step that an error names.
pub(super) async fn status_for(step: &str, db: &Database, run_id: RunId) -> Result<Option<RunStatus>> {
    let row = db.query_opt(step, sql!("read_run_status"), &[&run_id.as_uuid()]).await?;
    let read = |row: Row| {
        Ok(RunStatus {
            state: row.at("state")?,
            owner_pod: row.at("owner_pod")?,
            owner: row.at::<Option<Uuid>>("owner_incarnation")?.map(Incarnation::from),
            fence: row.at::<i64>("fence")?.into(),
        })
    };
    row.map(read).transpose()
}

/// Cancels a run, whoever owns it. Notifies the pods, so that the owner finds out, and the readers of its stream.
pub(crate) async fn cancel(db: &Database, run_id: RunId) -> Result<Cancelled> {
    let told = StreamNotice::new(NOBODY, [run_id].iter()).to_string();
    if db.query_opt("cancelling a run", sql!("cancel_run"), &[&run_id.as_uuid(), &told]).await?.is_some() {
        return Ok(Cancelled::Now);
    }
    Ok(match status(db, run_id).await? {
        Some(standing) => Cancelled::AlreadyEnded { state: standing.state },
        None => Cancelled::NotFound,
    })
}

/// The error for an owner whose write found no row.
pub(crate) fn fenced(what: &str, owner: Owner, standing: Option<&RunStatus>) -> Error {
    let now = match standing {
        None => "the run is gone".to_owned(),
        Some(s) if s.state != "running" => format!("the run is {}", s.state),
        Some(s) => match &s.owner_pod {
            Some(pod) => format!("pod {pod} owns it under fence {}", s.fence),
            None => "nobody owns it".to_owned(),
        },
    };
    Error::new(
        ErrorKind::Fenced,
        format!("run {}: {what} under fence {} was refused: {now}", owner.run_id, owner.fence),
    )
    .about_run(owner.run_id)
    .state("nothing was written")
    .help("stop working on it")
}

/// The error that names a pod which is not in the roster.
pub(crate) fn not_registered(pod: &PodId) -> Error {
    Error::new(ErrorKind::Detached, format!("pod {pod} is not in the roster as this incarnation, or drains"))
        .state("no run was started")
        .help("retry on another pod, or on this one when it is ready again")
}
