//! What people and schedulers read of the liveness history. All statements only read, take no lock for which a pod could
//! wait, and return a bounded number of rows.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use crate::error::Result;
use crate::pg::pool::Database;
use crate::pg::reply::Reply as _;
use crate::pg::statement::sql;
use crate::timestamp::Timestamp;

/// Which rows of the table of reliability to list. `None` does not filter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ReliabilityWanted {
    pub(crate) min_uptime: Option<f64>,
    pub(crate) min_stays_4h: Option<f64>,
    pub(crate) min_score: f64,
    pub(crate) max_score: f64,
    /// Only rows after this one in the list's order: its score, its uptime (-1 if unknown) and its name.
    pub(crate) after: Option<(f64, f64, String)>,
    pub(crate) limit: i64,
}

/// Lists how reliable the pods are: the best first.
pub(crate) async fn reliability(db: &Database, wanted: &ReliabilityWanted) -> Result<Vec<Row>> {
    const SQL: &str = sql!("list_reliability", "reliability_columns");
    let after = wanted.after.as_ref();
    let (score, uptime, id) = (after.map(|after| after.0), after.map(|after| after.1), after.map(|after| &after.2));
    // The statement relies on this: rows that come after have no higher score.
    let max_score = score.map_or(wanted.max_score, |score| score.min(wanted.max_score));
    let params: [&(dyn ToSql + Sync); 8] =
        [&wanted.min_uptime, &wanted.min_stays_4h, &wanted.min_score, &max_score, &score, &uptime, &id, &wanted.limit];
    db.query("listing how reliable the pods are", SQL, &params).await
}

/// How reliable one pod is; `None` if no roll-up has seen it.
pub(crate) async fn reliability_of(db: &Database, pod: &str) -> Result<Option<Row>> {
    const SQL: &str = sql!("read_reliability", "reliability_columns");
    db.query_opt("reading how reliable a pod is", SQL, &[&pod]).await
}

/// What is known of one pod; `None` if nothing is.
pub(crate) async fn liveness(db: &Database, pod: &str) -> Result<Option<Row>> {
    const SQL: &str = sql!("read_liveness", "sample_columns", "reliability_columns");
    db.query_opt("reading a pod's liveness", SQL, &[&pod]).await
}

/// Whether anything is known of a pod.
pub(crate) async fn is_known(db: &Database, pod: &str) -> Result<bool> {
    const SQL: &str = sql!("is_known_pod");
    let row = db.query_opt("looking for a pod", SQL, &[&pod]).await?;
    row.map_or(Ok(false), |row| row.at("is_known"))
}

/// The samples of a pod from `since` on and before `until`, newest first.
pub(crate) async fn samples(
    db: &Database,
    pod: &str,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    limit: i64,
) -> Result<Vec<Row>> {
    const SQL: &str = sql!("list_samples", "sample_columns");
    db.query("listing a pod's samples", SQL, &[&pod, &since, &until, &limit]).await
}

/// Percentiles over the first `most` pods, and the mean of each hour of the week.
pub(crate) async fn availability(db: &Database, most: i64, shares: &[f64]) -> Result<Option<Row>> {
    const SQL: &str = sql!("read_availability");
    db.query_opt("reading how available the fleet was", SQL, &[&most, &shares]).await
}
