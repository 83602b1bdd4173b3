//! Statements on the pods' history: failures that are appended to the event log, and what has ended and is deleted. Pods have no right to delete history: they call functions that see to it that
//! nothing young, running or needed goes. Ages are by the server's clock.

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::pool::Database;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, PodId};
use crate::protocol::failures::Failed;
use crate::protocol::fold::{Entry, Snapshot};

/// Appends to the event log what failed on this pod.
pub(crate) async fn note_failures(db: &Database, pod: &PodId, by: Incarnation, failed: &[Failed]) -> Result<()> {
    const SQL: &str = "SELECT @.studio_note_failures($1, $2, $3, $4, $5, $6)";
    let kinds: Vec<&str> = failed.iter().map(|f| f.kind.as_str()).collect();
    let counts: Vec<i64> = failed.iter().map(|f| f.runs).collect();
    let runs: Vec<Uuid> = failed.iter().map(|f| f.run.as_uuid()).collect();
    let errors: Vec<&str> = failed.iter().map(|f| f.error.as_str()).collect();
    let (pod, by) = (pod.as_str(), by.as_uuid());
    db.query("telling the event log of failed runs", SQL, &[&pod, &by, &kinds, &counts, &runs, &errors]).await.map(drop)
}

/// Deletes at most `most` runs in these states. Returns how many, and whether there may be more. `None`: another prunes at
/// the moment.
pub(crate) async fn prune_runs(
    db: &Database,
    states: &[&str],
    keep: Duration,
    most: i32,
) -> Result<Option<(i32, bool)>> {
    const SQL: &str =
        "SELECT p.gone, p.more FROM @.studio_prune_runs($1, pg_catalog.make_interval(secs => $2), $3) AS p";
    let row = db.query_opt("pruning runs", SQL, &[&states, &keep.as_secs_f64(), &most]).await?;
    Ok(row.and_then(|row| Some((row.get::<_, Option<i32>>(0)?, row.get(1)))))
}

/// Deletes at most `most` incarnations that have ended. `None`: another prunes at the moment.
pub(crate) async fn prune_sessions(db: &Database, keep: Duration, most: i32) -> Result<Option<i32>> {
    const SQL: &str = "SELECT @.studio_prune_sessions(pg_catalog.make_interval(secs => $1), $2)";
    one(db.query_opt("pruning sessions", SQL, &[&keep.as_secs_f64(), &most]).await?)
}

/// The beginning of the log, and of each event whether it is old enough to go.
pub(crate) async fn oldest_events(db: &Database, keep: Duration, most: i32) -> Result<Vec<(Entry, bool)>> {
    const SQL: &str = "SELECT e.idx, e.kind, e.pod_id, e.incarnation, e.detail, \
             e.at < pg_catalog.now() - pg_catalog.make_interval(secs => $1) \
           FROM @.studio_pod_events e ORDER BY e.idx LIMIT $2";
    let most = i64::from(most);
    db.query("reading the log's beginning", SQL, &[&keep.as_secs_f64(), &most]).await?.iter().map(read_entry).collect()
}

fn read_entry(row: &Row) -> Result<(Entry, bool)> {
    let entry = Entry {
        idx: row.get(0),
        kind: row.get(1),
        pod_id: PodId::new(row.get::<_, String>(2))?,
        incarnation: row.get::<_, Uuid>(3).into(),
        detail: row.get(4),
    };
    Ok((entry, row.get(5)))
}

/// Puts `snapshot` in the place of the events from `first`, the log's first, to `upto`. `None`: another prunes, or has
/// pruned since they were read.
pub(crate) async fn prune_events(
    db: &Database,
    keep: Duration,
    first: i64,
    upto: i64,
    snapshot: &Snapshot,
    by: Option<(&str, Incarnation)>,
) -> Result<Option<i32>> {
    const SQL: &str = "SELECT @.studio_prune_events(pg_catalog.make_interval(secs => $1), $2, $3, $4, \
             COALESCE($5, SESSION_USER::pg_catalog.text), $6)";
    let detail: Value = serde_json::to_value(snapshot).map_err(|e| {
        Error::new(ErrorKind::Database, format!("a snapshot of the log cannot be written as JSON: {e}"))
            .left("no event was deleted")
            .caused_by(e)
    })?;
    let (pod, incarnation) = by.unzip();
    let incarnation = incarnation.map_or(Uuid::nil(), |incarnation| incarnation.as_uuid());
    let keep = keep.as_secs_f64();
    one(db.query_opt("pruning events", SQL, &[&keep, &first, &upto, &detail, &pod, &incarnation]).await?)
}

fn one(row: Option<Row>) -> Result<Option<i32>> {
    row.map(|row| row.get(0)).ok_or_else(|| Error::new(ErrorKind::Database, "pruning: the server sent no row"))
}

/// How many runs in these states ended longer ago than that.
pub(crate) async fn count_runs(db: &Database, states: &[&str], keep: Duration) -> Result<i64> {
    const SQL: &str = "SELECT pg_catalog.count(*) FROM @.studio_runs r WHERE r.state = ANY ($1) AND r.state <> 'running' \
           AND r.finished_at < pg_catalog.now() - pg_catalog.make_interval(secs => $2)";
    let row = db.query_opt("counting old runs", SQL, &[&states, &keep.as_secs_f64()]).await?;
    Ok(row.map_or(0, |row| row.get(0)))
}

/// How many events and sessions could go.
pub(crate) async fn count_events(db: &Database, keep: Duration) -> Result<(i64, i64)> {
    const SQL: &str = "WITH cutoff AS MATERIALIZED (SELECT pg_catalog.now() - pg_catalog.make_interval(secs => $1) AS old) \
         SELECT (SELECT GREATEST(pg_catalog.count(*) - 1, 0) FROM @.studio_pod_events e \
                  WHERE e.idx < ALL (SELECT y.idx FROM @.studio_pod_events y, cutoff c WHERE y.at >= c.old ORDER BY y.idx LIMIT 1)), \
                (SELECT pg_catalog.count(*) FROM @.studio_pod_sessions o, cutoff c WHERE o.ended_at < c.old \
                    AND NOT EXISTS (SELECT FROM @.studio_runs r WHERE r.state = 'running' AND r.owner_incarnation = o.incarnation) \
                    AND NOT EXISTS (SELECT FROM @.studio_pods p WHERE p.incarnation = o.incarnation))";
    let row = db.query_opt("counting old events", SQL, &[&keep.as_secs_f64()]).await?;
    Ok(row.map_or((0, 0), |row| (row.get(0), row.get(1))))
}
