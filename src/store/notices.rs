//! Notices, and the rows that a pod reads when it gets one (L11).

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::alerts;
use crate::alert::Alert;
use crate::error::Result;
use crate::id::{Fence, Incarnation, PodId, RunId};
use crate::pg::reply::Reply;
use crate::pg::schema::quote_identifier;
use crate::pg::session::Session;
use crate::pg::statement::sql;
use crate::pg::txn::Param;

/// How many events one read of the log returns.
pub(crate) const EVENTS_MOST: usize = 256;

/// The position of the last event.
pub(super) const LOG_POSITION: &str = sql!("read_log_position");

/// LISTENs on the schema's channel and on the pod's own, and returns the position of the last event. Every later event
/// on which pods act is announced.
pub(crate) async fn listen(session: &Session, own: &str) -> Result<i64> {
    let [fleet, own] = [&session.schema().channel(), own].map(quote_identifier);
    session.execute_batch("listening", &format!("LISTEN {fleet}; LISTEN {own}")).await?;
    session.query_one("reading the position of the event log", LOG_POSITION, &[]).await?.at("idx")
}

/// Asks every pod to probe the roster now.
pub(crate) async fn ask_for_a_look(session: &Session) -> Result<()> {
    const SQL: &str = "SELECT pg_notify(@.studio_channel(), 'look') AS told";
    session.query_and_tell("telling the others", SQL, &[]).await.map(drop)
}

/// An event, with the fields on which pods act.
#[derive(Debug)]
pub(crate) struct LoggedEvent {
    pub(crate) idx: i64,
    pub(crate) kind: String,
    /// `None` if the row was made by hand and its pod name is not valid.
    pub(crate) pod: Option<PodId>,
    pub(crate) incarnation: Incarnation,
    pub(crate) reason: Option<String>,
    pub(crate) run: Option<RunId>,
    /// What services are told, if the event is an alert.
    pub(crate) alert: Option<Alert>,
}

/// Reads the events after a position, at most [`EVENTS_MOST`].
pub(crate) async fn events_after(session: &Session, idx: i64) -> Result<Vec<LoggedEvent>> {
    const SQL: &str = sql!("read_events_after", "alert_columns");
    let most = i64::try_from(EVENTS_MOST).unwrap_or(i64::MAX);
    let params: [Param<'_>; 2] = [(&idx, Type::INT8), (&most, Type::INT8)];
    let rows = session.query("reading the event log", SQL, &params).await?;
    let read = |row: &Row| {
        Ok(LoggedEvent {
            idx: row.at("idx")?,
            kind: row.at("kind")?,
            pod: PodId::new(row.at::<String>("pod_id")?).ok(),
            incarnation: row.at::<Uuid>("incarnation")?.into(),
            reason: row.at("reason")?,
            run: row.at::<Option<String>>("run")?.and_then(|run| run.parse().ok()),
            alert: alerts::read(row, session.schema())?,
        })
    };
    rows.iter().map(read).collect()
}

/// What operators asked of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Requests {
    /// Somebody asked it to drain.
    pub(crate) drain: bool,
    /// Who cordoned it. `None`: nobody.
    pub(crate) cordoned_by: Option<String>,
}

/// Reads what operators asked of this incarnation. `None`: its row is gone.
pub(crate) async fn requests(session: &Session, own: Incarnation) -> Result<Option<Requests>> {
    const SQL: &str = sql!("read_requests");
    let rows = session.query("reading what operators ask of it", SQL, &[(&own.as_uuid(), Type::UUID)]).await?;
    let read = |row: &Row| {
        let drain = row.at::<Option<&str>>("drain_requested")?.is_some();
        Ok(Requests { drain, cordoned_by: row.at("cordoned_by")? })
    };
    rows.first().map(read).transpose()
}

/// The difference between the runs that this process executes and their rows.
#[derive(Debug, Default)]
pub(crate) struct OwnRuns {
    /// Runs that this pod has lost: each with the fence that this process has, and whether the run was cancelled.
    pub(crate) lost: Vec<(RunId, Fence, bool)>,
    /// Whether this pod owns a run that this process does not execute.
    pub(crate) more: bool,
}

/// Compares the runs that this process executes with their rows. A run that this very attempt has ended is not lost:
/// the attempt may not have had the reply yet. A run without a fence is being started or claimed.
pub(crate) async fn own_runs(session: &Session, own: Incarnation, known: &[(RunId, Option<Fence>)]) -> Result<OwnRuns> {
    const SQL: &str = sql!("compare_own_runs");
    let ids: Vec<Uuid> = known.iter().map(|(run_id, _)| run_id.as_uuid()).collect();
    let fences: Vec<Option<i64>> = known.iter().map(|(_, fence)| fence.map(Fence::get)).collect();
    let own = own.as_uuid();
    let params: [Param<'_>; 3] = [(&own, Type::UUID), (&ids, Type::UUID_ARRAY), (&fences, Type::INT8_ARRAY)];
    let mut runs = OwnRuns::default();
    for row in &session.query("looking at its own runs", SQL, &params).await? {
        match (row.at::<Option<Uuid>>("run_id")?, row.at::<Option<i64>>("fence")?) {
            (Some(run_id), Some(fence)) => {
                let is_cancelled = row.at::<Option<&str>>("state")? == Some("cancelled");
                runs.lost.push((run_id.into(), fence.into(), is_cancelled));
            }
            _ => runs.more = true,
        }
    }
    Ok(runs)
}
