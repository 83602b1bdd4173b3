//! Statements on the pods' history: they append failures to the event log, and delete what has ended. Pods have no
//! right to delete history themselves. They call functions that keep everything young, running or needed. Ages are by
//! the server's clock.

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, PodId};
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::protocol::failures::Failed;
use crate::protocol::fold::{Entry, Snapshot};
use crate::timestamp::Timestamp;

/// Appends to the event log what failed on this pod.
pub(crate) async fn note_failures(db: &Database, pod: &PodId, by: Incarnation, failed: &[Failed]) -> Result<()> {
    const SQL: &str = "SELECT @.studio_note_failures($1::pg_catalog.text, $2::pg_catalog.uuid, $3::pg_catalog.text[], $4::bigint[], $5::pg_catalog.uuid[], $6::pg_catalog.text[])";
    let kinds: Vec<&str> = failed.iter().map(|f| f.kind.as_str()).collect();
    let counts: Vec<i64> = failed.iter().map(|f| f.runs).collect();
    let runs: Vec<Uuid> = failed.iter().map(|f| f.run.as_uuid()).collect();
    let errors: Vec<&str> = failed.iter().map(|f| f.error.as_str()).collect();
    let (pod, by) = (pod.as_str(), by.as_uuid());
    db.query("telling the event log of failed runs", SQL, &[&pod, &by, &kinds, &counts, &runs, &errors]).await.map(drop)
}

/// The place of a row in the order in which rows are pruned: when it ended, and its id.
pub(crate) type Place = (Timestamp, Uuid);

/// What a call did with the rows that it was given.
#[derive(Debug)]
pub(crate) struct Handled {
    pub(crate) gone: i64,
    /// How many of the given rows were handled, from the first on.
    pub(crate) handled: usize,
    /// What stays although it is old enough, and what keeps it.
    pub(crate) kept: Vec<(Uuid, String)>,
}

/// The next `most` runs in this state that ended longer ago than `keep`, in the order of their end.
pub(crate) async fn old_runs(
    db: &Database,
    state: &str,
    keep: Duration,
    after: Option<Place>,
    most: i32,
) -> Result<Vec<Place>> {
    // The first condition on the end is what the index takes; the second is exact.
    const SQL: &str = "SELECT r.finished_at, r.run_id FROM @.studio_runs r \
         WHERE r.state = $1 AND r.finished_at < pg_catalog.now() - pg_catalog.make_interval(secs => $2) \
           AND r.finished_at >= COALESCE($3, '-infinity'::timestamptz) \
           AND (r.finished_at, r.run_id) > (COALESCE($3, '-infinity'::timestamptz), $4::uuid) \
         ORDER BY r.finished_at, r.run_id LIMIT $5";
    let (end, id) = after.unzip();
    let (keep, id, most) = (keep.as_secs_f64(), id.unwrap_or_default(), i64::from(most));
    places(&db.query("looking for old runs", SQL, &[&state, &keep, &end, &id, &most]).await?)
}

/// The next `most` incarnations that ended longer ago than `keep`, in the order of their end.
pub(crate) async fn old_sessions(db: &Database, keep: Duration, after: Option<Place>, most: i32) -> Result<Vec<Place>> {
    const SQL: &str = "SELECT s.ended_at, s.incarnation FROM @.studio_pod_sessions s \
         WHERE s.ended_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1) \
           AND s.ended_at >= COALESCE($2, '-infinity'::timestamptz) \
           AND (s.ended_at, s.incarnation) > (COALESCE($2, '-infinity'::timestamptz), $3::uuid) \
         ORDER BY s.ended_at, s.incarnation LIMIT $4";
    let (end, id) = after.unzip();
    let (keep, id, most) = (keep.as_secs_f64(), id.unwrap_or_default(), i64::from(most));
    places(&db.query("looking for old sessions", SQL, &[&keep, &end, &id, &most]).await?)
}

fn places(rows: &[Row]) -> Result<Vec<Place>> {
    rows.iter().map(|row| Ok((row.at(0)?, row.at(1)?))).collect()
}

/// Deletes these runs, those that have ended longer ago than `keep`, and at most so many chunks. `None`: another prunes
/// at the moment.
pub(crate) async fn prune_runs(
    db: &Database,
    runs: &[Uuid],
    keep: Duration,
    chunks_max: i32,
) -> Result<Option<Handled>> {
    const SQL: &str = "SELECT p.gone, p.handled, p.kept, p.reasons, p.codes \
         FROM @.studio_prune_named_runs($1::pg_catalog.uuid[], pg_catalog.make_interval(secs => $2), $3::integer) AS p";
    handled(db.query_opt("pruning runs", SQL, &[&runs, &keep.as_secs_f64(), &chunks_max]).await?)
}

/// Deletes these incarnations, those that ended longer ago than `keep`. `None`: another prunes at the moment.
pub(crate) async fn prune_sessions(db: &Database, incarnations: &[Uuid], keep: Duration) -> Result<Option<Handled>> {
    const SQL: &str = "SELECT p.gone, p.handled, p.kept, p.reasons, p.codes \
         FROM @.studio_prune_named_sessions($1::pg_catalog.uuid[], pg_catalog.make_interval(secs => $2)) AS p";
    handled(db.query_opt("pruning sessions", SQL, &[&incarnations, &keep.as_secs_f64()]).await?)
}

fn handled(row: Option<Row>) -> Result<Option<Handled>> {
    let row = row.ok_or_else(|| Error::new(ErrorKind::Database, "pruning: the server sent no row"))?;
    let Some(gone) = row.at::<Option<i32>>(0)? else { return Ok(None) };
    let (kept, reasons, codes): (Vec<Uuid>, Vec<String>, Vec<String>) = (row.at(2)?, row.at(3)?, row.at(4)?);
    let whys = reasons.into_iter().zip(codes).map(|(reason, code)| format!("{reason} [{code}]"));
    Ok(Some(Handled {
        gone: i64::from(gone),
        handled: usize::try_from(row.at::<i32>(1)?).unwrap_or(0),
        kept: kept.into_iter().zip(whys).collect(),
    }))
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
        idx: row.at(0)?,
        kind: row.at(1)?,
        // Written by hand: the event goes all the same, and must not keep the log from being pruned.
        pod_id: PodId::lossy(row.at(2)?),
        incarnation: row.at::<Uuid>(3)?.into(),
        detail: row.at(4)?,
    };
    Ok((entry, row.at(5)?))
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
    const SQL: &str = "SELECT @.studio_prune_events(pg_catalog.make_interval(secs => $1), $2::bigint, $3::bigint, \
             $4::pg_catalog.jsonb, COALESCE($5, SESSION_USER::pg_catalog.text)::pg_catalog.text, $6::pg_catalog.uuid)";
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
    row.ok_or_else(|| Error::new(ErrorKind::Database, "pruning: the server sent no row"))?.at(0)
}

/// How many runs in these states ended longer ago than that.
pub(crate) async fn count_runs(db: &Database, states: &[&str], keep: Duration) -> Result<i64> {
    const SQL: &str = "SELECT pg_catalog.count(*) FROM @.studio_runs r WHERE r.state = ANY ($1) AND r.state <> 'running' \
           AND r.finished_at < pg_catalog.now() - pg_catalog.make_interval(secs => $2)";
    let row = db.query_opt("counting old runs", SQL, &[&states, &keep.as_secs_f64()]).await?;
    row.map_or(Ok(0), |row| row.at(0))
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
    row.map_or(Ok((0, 0)), |row| Ok((row.at(0)?, row.at(1)?)))
}
