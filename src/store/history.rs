//! Statements on the pods' history. They append failures to the event log, and delete rows that are old enough. Pods
//! have no right to delete history directly. They call functions that keep everything that is young, running or needed.
//! Ages are by the server's clock.

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, PodId};
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::statement::sql;
use crate::protocol::failures::Failed;
use crate::protocol::fold::{LogEntry, RosterSnapshot};
use crate::timestamp::Timestamp;

/// Appends failures of this pod to the event log.
pub(crate) async fn note_failures(db: &Database, pod: &PodId, by: Incarnation, failed: &[Failed]) -> Result<()> {
    const SQL: &str = sql!("note_failures");
    let kinds: Vec<&str> = failed.iter().map(|f| f.kind.as_str()).collect();
    let counts: Vec<i64> = failed.iter().map(|f| f.runs).collect();
    let runs: Vec<Uuid> = failed.iter().map(|f| f.run.as_uuid()).collect();
    let errors: Vec<&str> = failed.iter().map(|f| f.error.as_str()).collect();
    let (pod, by) = (pod.as_str(), by.as_uuid());
    db.query("telling the event log of failed runs", SQL, &[&pod, &by, &kinds, &counts, &runs, &errors]).await.map(drop)
}

/// A row's place in the order of pruning: when it ended, and its id.
pub(crate) type Place = (Timestamp, Uuid);

/// The result of a call on the rows that it was given.
#[derive(Debug)]
pub(crate) struct Handled {
    pub(crate) gone: i64,
    /// How many of the given rows were handled, from the first on.
    pub(crate) handled: usize,
    /// Rows that stay although they are old enough, and the reason for each.
    pub(crate) kept: Vec<(Uuid, String)>,
}

/// Reads the next `most` runs in this state that ended longer ago than `keep`, ordered by their end.
pub(crate) async fn old_runs(
    db: &Database,
    state: &str,
    keep: Duration,
    after: Option<Place>,
    most: i32,
) -> Result<Vec<Place>> {
    const SQL: &str = sql!("find_old_runs");
    let (end, id) = after.unzip();
    let (keep, id, most) = (keep.as_secs_f64(), id.unwrap_or_default(), i64::from(most));
    places(&db.query("looking for old runs", SQL, &[&state, &keep, &end, &id, &most]).await?)
}

/// Reads the next `most` incarnations that ended longer ago than `keep`, ordered by their end.
pub(crate) async fn old_sessions(db: &Database, keep: Duration, after: Option<Place>, most: i32) -> Result<Vec<Place>> {
    const SQL: &str = sql!("find_old_sessions");
    let (end, id) = after.unzip();
    let (keep, id, most) = (keep.as_secs_f64(), id.unwrap_or_default(), i64::from(most));
    places(&db.query("looking for old sessions", SQL, &[&keep, &end, &id, &most]).await?)
}

fn places(rows: &[Row]) -> Result<Vec<Place>> {
    rows.iter().map(|row| Ok((row.at("ended_at")?, row.at("id")?))).collect()
}

/// Deletes those of these runs that ended longer ago than `keep`, with at most this many chunks. `None`: another
/// session is pruning.
pub(crate) async fn prune_runs(
    db: &Database,
    runs: &[Uuid],
    keep: Duration,
    chunks_max: i32,
) -> Result<Option<Handled>> {
    const SQL: &str = sql!("prune_runs");
    handled(db.query_opt("pruning runs", SQL, &[&runs, &keep.as_secs_f64(), &chunks_max]).await?)
}

/// Deletes those of these incarnations that ended longer ago than `keep`. `None`: another session is pruning.
pub(crate) async fn prune_sessions(db: &Database, incarnations: &[Uuid], keep: Duration) -> Result<Option<Handled>> {
    const SQL: &str = sql!("prune_sessions");
    handled(db.query_opt("pruning sessions", SQL, &[&incarnations, &keep.as_secs_f64()]).await?)
}

fn handled(row: Option<Row>) -> Result<Option<Handled>> {
    let row = row.ok_or_else(|| Error::new(ErrorKind::Database, "pruning: the server sent no row"))?;
    let Some(gone) = row.at::<Option<i32>>("gone")? else { return Ok(None) };
    let (kept, reasons, codes): (Vec<Uuid>, Vec<String>, Vec<String>) =
        (row.at("kept")?, row.at("reasons")?, row.at("codes")?);
    let whys = reasons.into_iter().zip(codes).map(|(reason, code)| format!("{reason} [{code}]"));
    Ok(Some(Handled {
        gone: i64::from(gone),
        handled: usize::try_from(row.at::<i32>("handled")?).unwrap_or(0),
        kept: kept.into_iter().zip(whys).collect(),
    }))
}

/// Reads the first events of the log, and for each whether it is old enough to be deleted.
pub(crate) async fn oldest_events(db: &Database, keep: Duration, most: i32) -> Result<Vec<(LogEntry, bool)>> {
    const SQL: &str = sql!("read_oldest_events");
    let most = i64::from(most);
    db.query("reading the log's beginning", SQL, &[&keep.as_secs_f64(), &most]).await?.iter().map(read_entry).collect()
}

fn read_entry(row: &Row) -> Result<(LogEntry, bool)> {
    let entry = LogEntry {
        idx: row.at("idx")?,
        kind: row.at("kind")?,
        // A name that was written by hand may be invalid. It must not stop the pruning of the log, so it is read as
        // well as possible.
        pod_id: PodId::lossy(row.at("pod_id")?),
        incarnation: row.at::<Uuid>("incarnation")?.into(),
        detail: row.at("detail")?,
    };
    Ok((entry, row.at("is_old")?))
}

/// Replaces the events from `first`, the log's first, to `upto` by `snapshot`. `None`: another session is pruning, or
/// has pruned since the events were read.
pub(crate) async fn prune_events(
    db: &Database,
    keep: Duration,
    first: i64,
    upto: i64,
    snapshot: &RosterSnapshot,
    by: Option<(&str, Incarnation)>,
) -> Result<Option<i32>> {
    const SQL: &str = sql!("prune_events");
    let detail: Value = serde_json::to_value(snapshot).map_err(|e| {
        Error::new(ErrorKind::Database, format!("a snapshot of the log cannot be written as JSON: {e}"))
            .state("no event was deleted")
            .caused_by(e)
    })?;
    let (pod, incarnation) = by.unzip();
    let incarnation = incarnation.map_or(Uuid::nil(), |incarnation| incarnation.as_uuid());
    let keep = keep.as_secs_f64();
    one(db.query_opt("pruning events", SQL, &[&keep, &first, &upto, &detail, &pod, &incarnation]).await?)
}

fn one(row: Option<Row>) -> Result<Option<i32>> {
    row.ok_or_else(|| Error::new(ErrorKind::Database, "pruning: the server sent no row"))?.at("gone")
}

/// Counts the runs in these states that ended longer ago than `keep`.
pub(crate) async fn count_runs(db: &Database, states: &[&str], keep: Duration) -> Result<i64> {
    const SQL: &str = sql!("count_old_runs");
    let row = db.query_opt("counting old runs", SQL, &[&states, &keep.as_secs_f64()]).await?;
    row.map_or(Ok(0), |row| row.at("runs"))
}

/// Counts the events and sessions that could be deleted.
pub(crate) async fn count_events(db: &Database, keep: Duration) -> Result<(i64, i64)> {
    const SQL: &str = sql!("count_old_history");
    let row = db.query_opt("counting old events", SQL, &[&keep.as_secs_f64()]).await?;
    row.map_or(Ok((0, 0)), |row| Ok((row.at("events")?, row.at("sessions")?)))
}
