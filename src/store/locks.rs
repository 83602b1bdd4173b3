//! The two locks of a pod: who holds them, and whether a session is really a session.

use std::net::IpAddr;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{LockKey, PodId};
use crate::pg::reply::Reply;
use crate::pg::session::{Backend, Session};
use crate::pg::txn::Param;

/// A pod's two keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keys {
    pub(crate) lock: LockKey,
    pub(crate) witness: LockKey,
}

/// Who holds a key, as far as our role may see it.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    /// `None`: a prepared transaction.
    pub(crate) pid: Option<i32>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) age: Option<Duration>,
    /// The pod whose row bears this key.
    pub(crate) registered: Option<String>,
    pub(crate) role: Option<String>,
    pub(crate) application: Option<String>,
    /// The name of a prepared transaction.
    pub(crate) prepared: Option<String>,
    /// The server does not show our role where it connects from.
    pub(crate) is_hidden: bool,
    /// It is in the roster as a backend of the pod whose key this is.
    pub(crate) is_pods: bool,
}

impl Holder {
    /// Whether it is a session of podlock's: that of a pod, or one that its name calls so, as those are that begin or watch.
    /// A role can give its session such a name.
    pub(crate) fn is_podlocks(&self) -> bool {
        self.is_pods || self.application.as_deref().is_some_and(|name| name.starts_with("podlock/"))
    }
}

pub(crate) async fn keys(session: &Session, pod: &PodId) -> Result<Keys> {
    const SQL: &str = "SELECT @.studio_lock_key($1::pg_catalog.text), @.studio_witness_key($1::pg_catalog.text)";
    let row = session.query_one("reading the pod's lock keys", SQL, &[(&pod.as_str(), Type::TEXT)]).await?;
    Ok(Keys { lock: row.at::<i64>(0)?.into(), witness: row.at::<i64>(1)?.into() })
}

/// Waits at most `slice` for a session lock. The wait is a real one: a try would lose to queued watchers.
pub(crate) async fn lock(session: &Session, key: LockKey, slice: Duration) -> Result<bool> {
    const SQL: &str = "SELECT @.studio_lock($1::bigint, $2::integer)";
    let params: [Param<'_>; 2] = [(&key.get(), Type::INT8), (&millis(slice), Type::INT4)];
    session.query_one("waiting for the pod's lock", SQL, &params).await?.at(0)
}

/// Who holds `key` now, in any mode; of several, the pod that is registered with it, or else a stranger.
pub(crate) async fn holder(session: &Session, key: LockKey) -> Result<Option<Holder>> {
    const SQL: &str = "WITH bearer AS MATERIALIZED ( \
           SELECT p.pod_id, CASE WHEN p.lock_key = $1 THEN p.liveness_pid ELSE p.control_pid END AS pid \
             FROM @.studio_pods p WHERE p.lock_key = $1 OR p.witness_key = $1 \
         ) \
         SELECT l.pid, pg_catalog.host(a.client_addr), \
             EXTRACT(EPOCH FROM pg_catalog.clock_timestamp() - a.backend_start)::float8, b.pod_id, \
             COALESCE(a.usename, x.owner)::text, NULLIF(a.application_name, ''), x.gid, a.backend_start IS NULL, \
             COALESCE(b.pid = l.pid, false) AS is_pods \
         FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
         LEFT JOIN pg_catalog.pg_locks t ON l.pid IS NULL AND t.pid IS NULL AND t.locktype = 'transactionid' AND t.granted \
           AND t.virtualtransaction = l.virtualtransaction \
         LEFT JOIN pg_catalog.pg_prepared_xacts x ON x.transaction = t.transactionid \
         LEFT JOIN bearer b ON true \
         WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted \
           AND ((l.classid::bigint << 32) | l.objid::bigint) = $1 \
           AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) \
         ORDER BY is_pods DESC, (a.application_name LIKE 'podlock/%') IS TRUE, l.pid LIMIT 1";
    let rows = session.query("looking for the lock's holder", SQL, &[(&key.get(), Type::INT8)]).await?;
    let read = |row: &Row| {
        Ok(Holder {
            pid: row.at(0)?,
            address: row.at::<Option<String>>(1)?.and_then(|a| a.parse().ok()),
            age: row.at::<Option<f64>>(2)?.and_then(|s| Duration::try_from_secs_f64(s).ok()),
            registered: row.at(3)?,
            role: row.at(4)?,
            application: row.at(5)?,
            prepared: row.at(6)?,
            is_hidden: row.at(7)?,
            is_pods: row.at(8)?,
        })
    };
    rows.first().map(read).transpose()
}

/// The canary: tries to take, from this session, a key that another session of ours holds. True if the server let it,
/// which means that its session locks do not protect anything; the lock is then given back.
pub(crate) async fn lock_is_fake(session: &Session, key: LockKey) -> Result<bool> {
    const SQL: &str = "SELECT CASE WHEN pg_catalog.pg_try_advisory_lock($1) \
         THEN pg_catalog.pg_advisory_unlock($1) ELSE false END";
    session.query_one("checking that the lock is real", SQL, &[(&key.get(), Type::INT8)]).await?.at(0)
}

/// The pid that answers on this session now, and whether this backend still holds `key` in `pg_locks`.
pub(crate) async fn ping_and_check(session: &Session, key: LockKey, limit: Duration) -> Result<(i32, bool)> {
    const SQL: &str = "SELECT pg_catalog.pg_backend_pid(), @.studio_holds($1::bigint, pg_catalog.pg_backend_pid())";
    let rows = session.query_limited("ping", SQL, &[(&key.get(), Type::INT8)], limit).await?;
    let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Database, "ping: the server sent no row"))?;
    Ok((row.at(0)?, row.at(1)?))
}

/// Ends backends that were ours and that the server may still have: same login role, pid and start. Returns how many it
/// had. Under the login role, from whom the server hides none of its own backends.
///
/// And still with our `key`: a session pooler may have handed the backend on to somebody else, even to ourselves.
pub(crate) async fn end_own_backends(session: &mut Session, key: LockKey, backends: &[Backend]) -> Result<usize> {
    const SQL: &str = "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a \
         WHERE a.pid = $1 AND a.backend_start = $2 AND a.usename = session_user AND a.pid <> pg_catalog.pg_backend_pid() \
           AND EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.objsubid = 1 \
             AND ((l.classid::bigint << 32) | l.objid::bigint) = $3 \
             AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()))";
    const STEP: &str = "ending our own former backend";
    if backends.is_empty() {
        return Ok(0);
    }
    let txn = session.begin_as_login_role(STEP).await?;
    let mut ended = 0;
    for backend in backends {
        let params: [Param<'_>; 3] =
            [(&backend.pid, Type::INT4), (&backend.started, Type::TIMESTAMPTZ), (&key.get(), Type::INT8)];
        ended += txn.query(STEP, SQL, &params).await?.len();
    }
    txn.rollback(STEP).await?;
    Ok(ended)
}

/// Whole milliseconds for the server, at least one.
pub(super) fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX).max(1)
}
