//! Statements on a pod's two locks: take them, find their holder, and check that session locks work at all.

use std::net::IpAddr;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{LockKey, PodId};
use crate::pg::reply::Reply;
use crate::pg::session::{Backend, Session};
use crate::pg::statement::sql;
use crate::pg::txn::Param;

/// The keys of a pod's two locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keys {
    pub(crate) lock: LockKey,
    pub(crate) witness: LockKey,
}

/// The holder of a key, as far as our role may see it.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    /// `None` if a prepared transaction holds the key.
    pub(crate) pid: Option<i32>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) age: Option<Duration>,
    /// The pod in whose row this key is stored.
    pub(crate) registered: Option<String>,
    pub(crate) role: Option<String>,
    pub(crate) application: Option<String>,
    /// The name of a prepared transaction.
    pub(crate) prepared: Option<String>,
    /// The server does not show our role the address of this session.
    pub(crate) is_hidden: bool,
    /// The roster has this backend as one of the pod to which the key belongs.
    pub(crate) is_pods: bool,
}

impl Holder {
    /// Whether the holder is a session of podlock's: a pod's registered backend, or a session whose name begins with
    /// `podlock/`. Sessions that are starting up or watching are known by name alone. Any role can give its session
    /// such a name.
    pub(crate) fn is_podlocks(&self) -> bool {
        self.is_pods || self.application.as_deref().is_some_and(|name| name.starts_with("podlock/"))
    }
}

pub(crate) async fn keys(session: &Session, pod: &PodId) -> Result<Keys> {
    const SQL: &str = sql!("read_lock_keys");
    let row = session.query_one("reading the pod's lock keys", SQL, &[(&pod.as_str(), Type::TEXT)]).await?;
    Ok(Keys { lock: row.at::<i64>("lock")?.into(), witness: row.at::<i64>("witness")?.into() })
}

/// Waits at most `slice` for a session lock. It queues for the lock: a mere try would lose to watchers in the queue.
pub(crate) async fn lock(session: &Session, key: LockKey, slice: Duration) -> Result<bool> {
    const SQL: &str = "SELECT @.studio_lock($1::bigint, $2::integer) AS granted";
    let params: [Param<'_>; 2] = [(&key.get(), Type::INT8), (&millis(slice), Type::INT4)];
    session.query_one("waiting for the pod's lock", SQL, &params).await?.at("granted")
}

/// Who holds `key` now, in any mode. If several do, returns the pod that is registered with the key, or else a
/// stranger.
pub(crate) async fn holder(session: &Session, key: LockKey) -> Result<Option<Holder>> {
    const SQL: &str = sql!("find_lock_holder", "advisory_lock", "lock_key");
    let rows = session.query("looking for the lock's holder", SQL, &[(&key.get(), Type::INT8)]).await?;
    let read = |row: &Row| {
        Ok(Holder {
            pid: row.at("pid")?,
            address: row.at::<Option<String>>("address")?.and_then(|a| a.parse().ok()),
            age: row.at::<Option<f64>>("age_s")?.and_then(|s| Duration::try_from_secs_f64(s).ok()),
            registered: row.at("registered")?,
            role: row.at("role")?,
            application: row.at("application")?,
            prepared: row.at("prepared")?,
            is_hidden: row.at("is_hidden")?,
            is_pods: row.at("is_pods")?,
        })
    };
    rows.first().map(read).transpose()
}

/// The canary: tries to take a key on this session while another session of ours holds it. Returns true if the server
/// allowed that. Then its session locks protect nothing. The lock that was taken is released.
pub(crate) async fn lock_is_fake(session: &Session, key: LockKey) -> Result<bool> {
    const SQL: &str = sql!("try_held_lock");
    session.query_one("checking that the lock is real", SQL, &[(&key.get(), Type::INT8)]).await?.at("was_granted")
}

/// Takes a lock that this session holds a second time. [`ping_and_check`] needs that.
pub(crate) async fn lock_again(session: &Session, key: LockKey) -> Result<()> {
    const SQL: &str = sql!("lock_again");
    session.query_one("taking the pod's lock again", SQL, &[(&key.get(), Type::INT8)]).await.map(drop)
}

/// The pid of the backend that answers on this session, and whether that backend still holds `key`, which it took
/// twice: by [`lock`] and [`lock_again`].
pub(crate) async fn ping_and_check(session: &Session, key: LockKey, limit: Duration) -> Result<(i32, bool)> {
    const SQL: &str = sql!("ping_and_check", "holds_twice");
    let rows = session.query_limited("ping", SQL, &[(&key.get(), Type::INT8)], limit).await?;
    let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Database, "ping: the server sent no row"))?;
    Ok((row.at("pid")?, row.at("holds")?))
}

/// Ends former backends of this pod that the server may still have, and that hold our `key`. Returns how many there
/// were.
pub(crate) async fn end_own_backends(session: &mut Session, key: LockKey, backends: &[Backend]) -> Result<usize> {
    const SQL: &str = sql!("end_own_backend", "advisory_lock", "lock_key");
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

/// Whole milliseconds for the server, at least 1.
pub(super) fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX).max(1)
}
