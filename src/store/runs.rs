//! Statements on runs. The returned rows say what a statement changed. Each condition on which a plan relies is
//! repeated in the statement that acts on it. [`start`], [`claim`] and the writes of an owner (L5) have files of their
//! own, and so have the types of all of them (`super::rows`).

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

pub(crate) use super::claim::{Claimer, claim, warm_up_claim};
pub(crate) use super::owner_writes::{ONLY, checkpoint, finish, give_back, touch};
pub(crate) use super::rows::{Claimed, Claims, Ending, Holder, Insert, Inserted, Owner, RunStatus, Unreadable};
pub(crate) use super::start::{find_holders, restart, start, start_in_txn, submit, submit_in_txn};
use super::streams::Tell;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, PodId, RunId};
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::statement::sql;
use crate::protocol::notices::NOBODY;
use crate::protocol::state::Cancelled;

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

/// Cancels a run, whoever owns it. Notifies the owner and the readers of its stream.
pub(crate) async fn cancel(db: &Database, run_id: RunId) -> Result<Cancelled> {
    let (id, tell) = (run_id.as_uuid(), Tell::new(None, NOBODY, [run_id].into_iter()));
    let mut params: Vec<&(dyn ToSql + Sync)> = vec![&id];
    params.extend(tell.params());
    if db.query_opt("cancelling a run", sql!("cancel_run", "tell_readers"), &params).await?.is_some() {
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
