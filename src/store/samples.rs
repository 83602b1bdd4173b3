//! Statements on the samples that pods take of themselves: `studio_pod_heartbeats` and its partitions.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio_postgres::types::ToSql;

use crate::error::{Error, Result};
use crate::id::{Incarnation, PodId};
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::statement::sql;
use crate::pg::txn::one;

/// How long one write of samples may take on the server. A shorter limit refuses a slow server's writes; a longer one
/// keeps a connection of the pool from runs.
const LIMIT: Duration = Duration::from_secs(5);
/// The SQLSTATE of a row whose partition is missing.
const NO_PARTITION: &str = "23514";

/// A sample as a statement writes it.
#[derive(Debug, Serialize)]
pub(crate) struct SampleRow<'a> {
    pub(crate) number: i64,
    /// For how many seconds the pod has kept the sample.
    pub(crate) age: f64,
    pub(crate) status: &'a str,
    pub(crate) health: &'static str,
    pub(crate) cpu_usage: Option<f32>,
    pub(crate) memory_pressure: Option<f32>,
    pub(crate) memory_available: Option<i64>,
    pub(crate) running_runs: i32,
    pub(crate) runtime_lag_ms: Option<f32>,
    /// A value that is no number is `None`.
    pub(crate) gauges: Option<&'a BTreeMap<String, Option<f64>>>,
    pub(crate) details: Option<&'a Value>,
}

/// Stores samples of one incarnation, ordered by number, up to the number `last`. Those that are stored already are
/// passed over. Returns how many were stored.
pub(crate) async fn write(
    db: &Database,
    own: Incarnation,
    pod: &PodId,
    last: i64,
    samples: &[SampleRow<'_>],
) -> Result<i64> {
    const SQL: &str = sql!("write_samples");
    let step = "writing samples";
    let samples = serde_json::to_value(samples).unwrap_or_default();
    let params: [&(dyn ToSql + Sync); 4] = [&own.as_uuid(), &pod.as_str(), &last, &samples];
    one(step, db.query_limited(step, SQL, &params, LIMIT).await?)?.at("stored")
}

/// Whether a write was refused because the day of a sample has no partition.
pub(crate) fn lacks_a_day(error: &Error) -> bool {
    error.sqlstate() == Some(NO_PARTITION)
}

/// Whether the server refused what a sample contains: the classes 22 (data) and 23 (constraints), a text that is no
/// JSON for it, or a limit of its own. Writing the same again is refused again.
pub(crate) fn is_about_the_data(error: &Error) -> bool {
    error.sqlstate().is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class)))
}

/// Records in the open session of an incarnation that it wrote samples now, how many runs it has begun, and its counters.
/// Does nothing if another transaction has locked the session's row.
pub(crate) async fn note_activity(
    db: &Database,
    own: Incarnation,
    runs: u64,
    counters: &BTreeMap<String, u64>,
) -> Result<()> {
    const SQL: &str = sql!("note_activity");
    let runs = i64::try_from(runs).unwrap_or(i64::MAX);
    let counters = serde_json::to_value(counters).unwrap_or_default();
    let params: [&(dyn ToSql + Sync); 3] = [&own.as_uuid(), &runs, &counters];
    db.query("recording the activity of a session", SQL, &params).await.map(drop)
}

/// Makes the partitions for today, the next two days and `back` days before today, as far as they are missing. Returns
/// how many were made. `None`: another transaction is at it.
pub(crate) async fn add_days(db: &Database, back: i32) -> Result<Option<i32>> {
    const SQL: &str = sql!("add_sample_days");
    let step = "making partitions for samples";
    one(step, db.query(step, SQL, &[&back]).await?)?.at("made")
}

/// What a try to drop a partition did.
#[derive(Debug)]
pub(crate) struct Dropped {
    /// The partition that was dropped.
    pub(crate) dropped: Option<String>,
    /// An older one that stays, because something of the service's own depends on it.
    pub(crate) kept: Option<String>,
}

/// Drops the oldest partition whose samples are all older than `keep`, if there is one and nobody uses it.
pub(crate) async fn drop_day(db: &Database, keep: Duration) -> Result<Dropped> {
    const SQL: &str = sql!("drop_sample_day");
    let step = "dropping a partition of samples";
    let row = one(step, db.query(step, SQL, &[&keep.as_secs_f64()]).await?)?;
    Ok(Dropped { dropped: row.at("dropped")?, kept: row.at("kept")? })
}

/// Deletes at most `most` rows of writers that have long ended. Returns how many.
pub(crate) async fn clear_writers(db: &Database, most: i64) -> Result<i64> {
    const SQL: &str = sql!("clear_sample_writers");
    let step = "clearing the writers of samples";
    one(step, db.query(step, SQL, &[&most]).await?)?.at("gone")
}
