//! The statements behind [`Operator`](crate::operator::Operator): what people and tools ask. One function a statement.
//!
//! They read, but for [`drain`], [`evict`], [`release`] and [`drop_schema`]; they take no lock that a pod could wait for. An argument that is
//! `None` does not filter: the server folds it away when it plans, since the plan is made for the values at hand.

use tokio_postgres::Row;
use uuid::Uuid;

use crate::error::Result;
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::schema::quote_identifier;
use crate::pg::session::Session;
use crate::store::crashes::{crash_reasons, died_with};
use crate::timestamp::Timestamp;

/// The roster beside the locks, by name.
pub(crate) async fn pods(
    db: &Database,
    name: Option<&str>,
    state: Option<&str>,
    alive: Option<bool>,
    limit: Option<i64>,
) -> Result<Vec<Row>> {
    db.query(
        "listing the pods",
        "SELECT s.pod_id, s.incarnation, s.state, s.alive, s.holder_pid, pg_catalog.host(s.client_addr) AS client_addr,
                s.runs, s.event_index, s.started_at, s.version, s.labels, s.witness, s.session, s.drain_requested,
                s.evicted, s.lags, s.foreign_lock, s.wait_reason, (pg_catalog.date_part('epoch', s.wait_left) * 1000)::bigint AS wait_left_ms,
                (pg_catalog.date_part('epoch', s.lag) * 1000)::bigint AS lag_ms, p.lease_ms
           FROM @.studio_pod_status AS s
           LEFT JOIN @.studio_pods AS p ON p.incarnation = s.incarnation
          WHERE ($1::text IS NULL OR s.pod_id = $1)
            AND ($2::text IS NULL OR s.state = $2)
            AND ($3::boolean IS NULL OR s.alive = $3)
          ORDER BY s.pod_id
          LIMIT $4",
        &[&name, &state, &alive, &limit],
    )
    .await
}

/// The incarnations of a name, newest first.
pub(crate) async fn sessions(db: &Database, pod: &str, limit: i64) -> Result<Vec<Row>> {
    db.query(
        "listing a pod's incarnations",
        "SELECT s.incarnation, s.pod_id, s.began_at, s.ended_at, s.reason, s.buried_by, s.cause
           FROM @.studio_pod_sessions AS s
          WHERE s.pod_id = $1
          ORDER BY s.began_at DESC, s.incarnation DESC
          LIMIT $2",
        &[&pod, &limit],
    )
    .await
}

/// One incarnation; `None` if it is not in the history.
pub(crate) async fn session(db: &Database, incarnation: Uuid) -> Result<Option<Row>> {
    db.query_opt(
        "describing an incarnation",
        "SELECT s.incarnation, s.pod_id, s.began_at, s.ended_at, s.reason, s.buried_by, s.cause
           FROM @.studio_pod_sessions AS s
          WHERE s.incarnation = $1",
        &[&incarnation],
    )
    .await
}

/// Which runs are asked for; `None` and `false` do not filter.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunsWanted {
    pub(crate) state: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) owner: Option<String>,
    pub(crate) incarnation: Option<Uuid>,
    pub(crate) orphans: bool,
    pub(crate) unclaimable: bool,
    /// Only runs that come after this one in the list's order.
    pub(crate) after: Option<(Timestamp, Uuid)>,
    pub(crate) limit: Option<i64>,
}

/// The columns of a run, from `r` and what [`owners_that_died`] joins.
macro_rules! run_columns {
    () => {
        "r.run_id, r.kind, r.key, r.state, r.owner_pod, r.owner_incarnation, r.fence, r.attempt, r.crashes,
                r.created_at, r.finished_at,
                CASE WHEN pg_catalog.char_length(r.error) > 1000 THEN pg_catalog.left(r.error, 1000) || '…' ELSE r.error END
                  AS error_beginning,
                w.owner_pods, w.owner_incarnations, w.owner_reasons, w.owner_ends"
    };
}

/// The owners with which a quarantined run `r` died, as parallel arrays; `$reasons` are the ends that count.
macro_rules! owners_that_died {
    ($reasons:literal) => {
        concat!(
            "CROSS JOIN LATERAL (
                SELECT COALESCE(pg_catalog.array_agg(o.pod_id ORDER BY o.attempt), '{}') AS owner_pods,
                       COALESCE(pg_catalog.array_agg(o.incarnation ORDER BY o.attempt), '{}') AS owner_incarnations,
                       COALESCE(pg_catalog.array_agg(o.reason ORDER BY o.attempt), '{}') AS owner_reasons,
                       COALESCE(pg_catalog.array_agg(o.ended_at ORDER BY o.attempt), '{}') AS owner_ends
                  FROM (",
            died_with!($reasons, "r.crashes"),
            ") AS o WHERE r.state = 'quarantined') AS w"
        )
    };
}

/// Runs, newest first.
pub(crate) async fn runs(db: &Database, wanted: &RunsWanted) -> Result<Vec<Row>> {
    let (after_at, after_id) = wanted.after.unzip();
    db.query(
        "listing the runs",
        concat!(
            "SELECT ",
            run_columns!(),
            " FROM @.studio_runs AS r ",
            owners_that_died!("$11"),
            "
          WHERE ($1::text IS NULL OR r.state = $1)
            AND ($2::text IS NULL OR r.kind = $2)
            AND ($3::text IS NULL OR r.key = $3)
            AND ($4::text IS NULL OR r.owner_pod = $4)
            AND ($5::uuid IS NULL OR r.owner_incarnation = $5)
            AND (NOT $6::boolean OR r.run_id IN (SELECT o.run_id FROM @.studio_orphans AS o))
            AND ($7::timestamptz IS NULL
                 OR (r.created_at <= $7 AND (r.created_at < $7 OR r.run_id > $8::uuid)))
            AND (NOT $10::boolean
                 OR (r.run_id IN (SELECT o.run_id FROM @.studio_orphans AS o)
                     AND NOT EXISTS (SELECT FROM @.studio_pods AS p
                                      WHERE p.state = 'active' AND (p.kinds IS NULL OR r.kind = ANY(p.kinds)))))
          ORDER BY r.created_at DESC, r.run_id
          LIMIT $9"
        ),
        &[
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
        ],
    )
    .await
}

/// One run with its attempts as parallel arrays: one statement, hence one snapshot.
pub(crate) async fn run(db: &Database, run_id: Uuid) -> Result<Option<Row>> {
    db.query_opt(
        "describing a run",
        concat!(
            "SELECT ",
            run_columns!(),
            ", r.input, r.checkpoint, r.result, r.error,
                r.stdout, r.stderr, r.exit_code, r.output_escaped, r.parse_error,
                a.attempts, a.attempt_pods, a.attempt_incarnations, a.attempt_fences, a.attempt_began,
                a.attempt_ended, a.attempt_reasons
           FROM @.studio_runs AS r
          CROSS JOIN LATERAL (
                SELECT COALESCE(pg_catalog.array_agg(t.attempt ORDER BY t.attempt), '{}') AS attempts,
                       COALESCE(pg_catalog.array_agg(t.pod_id ORDER BY t.attempt), '{}') AS attempt_pods,
                       COALESCE(pg_catalog.array_agg(t.incarnation ORDER BY t.attempt), '{}') AS attempt_incarnations,
                       COALESCE(pg_catalog.array_agg(t.fence ORDER BY t.attempt), '{}') AS attempt_fences,
                       COALESCE(pg_catalog.array_agg(t.began_at ORDER BY t.attempt), '{}') AS attempt_began,
                       COALESCE(pg_catalog.array_agg(t.ended_at ORDER BY t.attempt), '{}') AS attempt_ended,
                       COALESCE(pg_catalog.array_agg(t.reason ORDER BY t.attempt), '{}') AS attempt_reasons
                  FROM @.studio_run_attempts AS t
                 WHERE t.run_id = r.run_id) AS a
          ",
            owners_that_died!("$2"),
            " WHERE r.run_id = $1"
        ),
        &[&run_id, &crash_reasons()],
    )
    .await
}

/// The events after `after`, oldest first.
pub(crate) async fn events_after(
    db: &Database,
    after: i64,
    pod: Option<&str>,
    kind: Option<&str>,
    limit: Option<i64>,
) -> Result<Vec<Row>> {
    db.query(
        "listing the events after one",
        "SELECT e.idx, e.at, e.kind, e.pod_id, e.incarnation, e.by_pod, e.detail
           FROM @.studio_pod_events AS e
          WHERE e.idx > $1
            AND ($2::text IS NULL OR e.pod_id = $2)
            AND ($3::text IS NULL OR e.kind = $3)
          ORDER BY e.idx
          LIMIT $4",
        &[&after, &pod, &kind, &limit],
    )
    .await
}

/// The newest events, oldest of them first.
pub(crate) async fn events_newest(
    db: &Database,
    pod: Option<&str>,
    kind: Option<&str>,
    limit: i64,
) -> Result<Vec<Row>> {
    db.query(
        "listing the newest events",
        "SELECT n.idx, n.at, n.kind, n.pod_id, n.incarnation, n.by_pod, n.detail
           FROM (SELECT e.idx, e.at, e.kind, e.pod_id, e.incarnation, e.by_pod, e.detail
                   FROM @.studio_pod_events AS e
                  WHERE ($1::text IS NULL OR e.pod_id = $1)
                    AND ($2::text IS NULL OR e.kind = $2)
                  ORDER BY e.idx DESC
                  LIMIT $3) AS n
          ORDER BY n.idx",
        &[&pod, &kind, &limit],
    )
    .await
}

/// The position of the log's last event; 0 while it is empty.
pub(crate) async fn last_event(db: &Database) -> Result<i64> {
    let rows = db
        .query(
            "reading podlock's tables",
            "SELECT COALESCE(pg_catalog.max(e.idx), 0) AS idx FROM @.studio_pod_events AS e",
            &[],
        )
        .await?;
    rows.first().map_or(Ok(0), |row| row.at(0))
}

/// Asks a pod to drain; SQLSTATE `P0002` if none of that name is in the roster.
pub(crate) async fn drain(db: &Database, pod: &str) -> Result<Option<Row>> {
    db.query_opt("asking a pod to drain", "SELECT @.studio_drain($1::pg_catalog.text) AS incarnation", &[&pod]).await
}

pub(crate) async fn evict(db: &Database, pod: &str) -> Result<Option<Row>> {
    db.query_opt("putting a pod out", "SELECT @.studio_evict($1::pg_catalog.text) AS incarnation", &[&pod]).await
}

/// Gives a quarantined run another chance; SQLSTATE `P0002` if there is no such run, `55000` if it is not quarantined,
/// `23505` if its key is taken.
pub(crate) async fn release(db: &Database, run_id: Uuid) -> Result<()> {
    db.query_opt("releasing a run", "SELECT @.studio_release($1::pg_catalog.uuid)", &[&run_id]).await.map(drop)
}

/// Drops the schema with everything in it.
#[cfg(feature = "throwaway")]
pub(crate) async fn drop_schema(db: &Database) -> Result<()> {
    let sql = format!("DROP SCHEMA IF EXISTS {} CASCADE", db.schema().quoted());
    db.query_as_it_stands("dropping the schema", &sql, &[]).await.map(drop)
}

/// Asks for the schema's notifications on a dedicated session. It holds no lock, so no lease need end it.
pub(crate) async fn listen(session: &Session) -> Result<()> {
    let channel = quote_identifier(&session.schema().channel());
    session
        .execute_batch("listening for notifications", &format!("SET idle_session_timeout = 0; LISTEN {channel}"))
        .await
}
