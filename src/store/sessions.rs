//! Statements on the sessions of the history: `studio_pod_sessions`.

use serde_json::Value;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::error::Result;
use crate::id::{Incarnation, PodId};
use crate::pg::pool::Database;
use crate::pg::reply::Reply as _;
use crate::pg::statement::sql;
use crate::protocol::cause::{Exit, of_exit};

/// A session that nobody had closed.
#[derive(Debug)]
pub(crate) struct Stray {
    pub(crate) incarnation: Incarnation,
    pub(crate) pod_id: String,
}

/// Closes at most `most` sessions whose incarnation is not in the roster.
pub(crate) async fn close_strays(db: &Database, most: i64) -> Result<Vec<Stray>> {
    const SQL: &str = sql!("close_stray_sessions");
    let rows = db.query("closing sessions that nobody closed", SQL, &[&most]).await?;
    let stray = |row: &tokio_postgres::Row| {
        Ok(Stray { incarnation: row.at::<Uuid>("incarnation")?.into(), pod_id: row.at("pod_id")? })
    };
    rows.iter().map(stray).collect()
}

/// Records how the process behind `own` ended. `cgroup` is that of the pod's process: what it supervises runs in the same
/// one. Returns false if the row is gone or locked.
pub(crate) async fn note_exit(db: &Database, own: Incarnation, exit: Exit, cgroup: Option<Value>) -> Result<bool> {
    const SQL: &str = sql!("note_exit");
    let cause = of_exit(exit).map(|cause| cause.as_str());
    // SIGKILL at the end of a stop that somebody asked for is no lack of memory, whatever happened in the cgroup before.
    let cgroup = cgroup.filter(|_| !exit.was_asked);
    let params: [&(dyn ToSql + Sync); 5] = [&own.as_uuid(), &exit.code, &exit.signal, &cause, &cgroup];
    Ok(!db.query("recording the exit of a process", SQL, &params).await?.is_empty())
}

/// Records how the process ended that had this name before the one that registered as `own`. It was `former`, or else the
/// newest incarnation of the name before `own`. Without an `exit`, only the cgroup is compared. Returns the cause that the former session has now. `None`: nothing was recorded.
pub(crate) async fn note_former_exit(
    db: &Database,
    own: Incarnation,
    pod: &PodId,
    former: Option<Incarnation>,
    exit: Option<Exit>,
) -> Result<Option<(Incarnation, Option<String>)>> {
    const SQL: &str = sql!("note_former_exit");
    let cause = exit.and_then(of_exit).map(|cause| cause.as_str());
    let exit = exit.unwrap_or_default();
    let former = former.map(|former| former.as_uuid());
    let params: [&(dyn ToSql + Sync); 6] = [&own.as_uuid(), &pod.as_str(), &exit.code, &exit.signal, &cause, &former];
    let rows = db.query("recording the former exit", SQL, &params).await?;
    rows.first().map(|row| Ok((row.at::<Uuid>("incarnation")?.into(), row.at("cause")?))).transpose()
}
