//! The statements of [`Operator`](crate::operator::Operator), for people and tools. Each statement has one function.
//!
//! All of them only read, except [`drain`], [`cordon`], [`uncordon`], [`evict`], [`release`] and [`drop_schema`]. None
//! takes a lock for which a pod could wait. An argument that is `None` does not filter.

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::crashes::crash_reasons;
use super::notices::LOG_POSITION;
use crate::error::Result;
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::schema::quote_identifier;
use crate::pg::session::Session;
use crate::pg::statement::sql;
use crate::timestamp::Timestamp;

/// Lists the roster with the locks, by name.
pub(crate) async fn pods(
    db: &Database,
    name: Option<&str>,
    state: Option<&str>,
    alive: Option<bool>,
    limit: Option<i64>,
) -> Result<Vec<Row>> {
    const SQL: &str = sql!("list_pods");
    db.query("listing the pods", SQL, &[&name, &state, &alive, &limit]).await
}

/// The incarnations of a name that began before a time, newest first.
pub(crate) async fn sessions(db: &Database, pod: &str, limit: i64, before: Option<Timestamp>) -> Result<Vec<Row>> {
    const SQL: &str = sql!("list_sessions", "session_columns");
    db.query("listing a pod's incarnations", SQL, &[&pod, &limit, &before]).await
}

/// One incarnation; `None` if it is not in the history.
pub(crate) async fn session(db: &Database, incarnation: Uuid) -> Result<Option<Row>> {
    const SQL: &str = sql!("describe_session", "session_columns");
    db.query_opt("describing an incarnation", SQL, &[&incarnation]).await
}

/// Which runs to list. `None` and `false` do not filter.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunsWanted {
    pub(crate) state: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) owner: Option<String>,
    pub(crate) incarnation: Option<Uuid>,
    pub(crate) orphans: bool,
    pub(crate) unclaimable: bool,
    /// Only runs after this one in the list's order.
    pub(crate) after: Option<(Timestamp, Uuid)>,
    pub(crate) limit: Option<i64>,
}

/// Runs, newest first.
pub(crate) async fn runs(db: &Database, wanted: &RunsWanted) -> Result<Vec<Row>> {
    const SQL: &str = sql!("list_runs", "run_columns", "owners_that_died", "died_with");
    let (after_at, after_id) = wanted.after.unzip();
    let params: [&(dyn ToSql + Sync); 11] = [
        &wanted.state,
        &wanted.kind,
        &wanted.key,
        &wanted.owner,
        &wanted.incarnation,
        &wanted.orphans,
        &after_at,
        &after_id,
        &wanted.limit,
        &wanted.unclaimable,
        &crash_reasons(),
    ];
    db.query("listing the runs", SQL, &params).await
}

/// One run with its attempts as parallel arrays. It is one statement, so all of it is from one snapshot.
pub(crate) async fn run(db: &Database, run_id: Uuid) -> Result<Option<Row>> {
    const SQL: &str = sql!("describe_run", "run_columns", "owners_that_died", "died_with");
    db.query_opt("describing a run", SQL, &[&run_id, &crash_reasons()]).await
}

/// Which workers to list. `None` does not filter.
#[derive(Clone, Debug, Default)]
pub(crate) struct WorkersWanted {
    pub(crate) worker: Option<Uuid>,
    pub(crate) pod: Option<String>,
    pub(crate) health: Option<String>,
    pub(crate) liveness: Option<String>,
    /// Only workers after this one in the list's order: the name of its owner, its URL and its id.
    pub(crate) after: Option<(String, String, Uuid)>,
    pub(crate) limit: Option<i64>,
}

/// Workers of the pods in the roster, by the names of their owners and by their URLs.
pub(crate) async fn workers(db: &Database, wanted: &WorkersWanted) -> Result<Vec<Row>> {
    const SQL: &str = sql!("list_workers");
    let after = wanted.after.as_ref();
    let (pod, url, id) = (after.map(|after| &after.0), after.map(|after| &after.1), after.map(|after| after.2));
    let params: [&(dyn ToSql + Sync); 8] =
        [&wanted.worker, &wanted.pod, &wanted.health, &wanted.liveness, &pod, &url, &id, &wanted.limit];
    db.query("listing the workers", SQL, &params).await
}

/// The events after `after`, oldest first.
pub(crate) async fn events_after(
    db: &Database,
    after: i64,
    pod: Option<&str>,
    kind: Option<&str>,
    limit: Option<i64>,
) -> Result<Vec<Row>> {
    const SQL: &str = sql!("list_events_after");
    db.query("listing the events after one", SQL, &[&after, &pod, &kind, &limit]).await
}

/// The newest events, with the oldest of them first.
pub(crate) async fn events_newest(
    db: &Database,
    pod: Option<&str>,
    kind: Option<&str>,
    limit: i64,
) -> Result<Vec<Row>> {
    const SQL: &str = sql!("list_newest_events");
    db.query("listing the newest events", SQL, &[&pod, &kind, &limit]).await
}

/// The position of the log's last event; 0 if the log is empty.
pub(crate) async fn last_event(db: &Database) -> Result<i64> {
    let rows = db.query("reading podlock's tables", LOG_POSITION, &[]).await?;
    rows.first().map_or(Ok(0), |row| row.at("idx"))
}

/// Asks a pod to drain. Fails with SQLSTATE `P0002` if no pod of that name is in the roster.
pub(crate) async fn drain(db: &Database, pod: &str) -> Result<Option<Row>> {
    db.query_opt("asking a pod to drain", "SELECT @.studio_drain($1::text) AS incarnation", &[&pod]).await
}

/// Cordons a pod. Fails as [`drain`].
pub(crate) async fn cordon(db: &Database, pod: &str) -> Result<Option<Row>> {
    db.query_opt("cordoning a pod", "SELECT @.studio_cordon($1::text) AS incarnation", &[&pod]).await
}

/// Lifts the cordon of a pod. Fails as [`drain`].
pub(crate) async fn uncordon(db: &Database, pod: &str) -> Result<Option<Row>> {
    db.query_opt("lifting a cordon", "SELECT @.studio_uncordon($1::text) AS incarnation", &[&pod]).await
}

pub(crate) async fn evict(db: &Database, pod: &str) -> Result<Option<Row>> {
    db.query_opt("putting a pod out", "SELECT @.studio_evict($1::text) AS incarnation", &[&pod]).await
}

/// Releases a quarantined run, so that it can be claimed again. Fails with SQLSTATE `P0002` if there is no such run,
/// `55000` if it is not quarantined, and `23505` if its key is taken.
pub(crate) async fn release(db: &Database, run_id: Uuid) -> Result<()> {
    db.query_opt("releasing a run", "SELECT @.studio_release($1::uuid) AS released", &[&run_id]).await.map(drop)
}

/// Drops the schema with everything in it.
#[cfg(feature = "throwaway")]
pub(crate) async fn drop_schema(db: &Database) -> Result<()> {
    let sql = format!("DROP SCHEMA IF EXISTS {} CASCADE", db.schema().quoted());
    db.query_as_it_stands("dropping the schema", &sql, &[]).await.map(drop)
}

/// LISTENs for the schema's notifications on a dedicated session. The session holds no lock, so it needs no lease.
pub(crate) async fn listen(session: &Session) -> Result<()> {
    let channel = quote_identifier(&session.schema().channel());
    session
        .execute_batch("listening for notifications", &format!("SET idle_session_timeout = 0; LISTEN {channel}"))
        .await
}
