//! Is the lock real? Refuses poolers that hand out other backends, and servers whose session locks do nothing.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{LockKey, PodId};
use crate::postgres::locks;
use crate::postgres::session::{Opener, Role, Session};

/// Rounds where something stands between us and the server; where nothing does, one is enough.
const ROUNDS: usize = 8;
/// Connections that hold transactions open beside the one under test.
const OTHERS: usize = 3;

/// Proves, before any lock is taken, that a session stays with one backend: its pid must answer from transaction to
/// transaction while other connections hold transactions open. One try proves nothing: a pooler in transaction mode
/// got through in 15 of 30 boots that compared once.
pub(crate) async fn refuse_pooler(opener: &Opener, session: &Session, limit: std::time::Duration) -> Result<()> {
    let rounds = if session.facts().direct { 1 } else { ROUNDS };
    let mut others = Vec::with_capacity(OTHERS);
    for _ in 0..if session.facts().direct { 0 } else { OTHERS } {
        others.push(opener.open(Role::Migrate).await?);
    }
    let own = session.backend().pid;
    for _ in 0..rounds {
        let mut pids = BTreeSet::from([locks::ping(session, limit).await?]);
        let mut transactions = Vec::with_capacity(others.len());
        for other in &mut others {
            let txn = other.begin("checking for a pooler").await.map_err(refuses_transactions)?;
            let pid = locks::pid_in_txn(&txn).await?;
            transactions.push(txn);
            if pid == own {
                return Err(pooled("two connections share one backend"));
            }
        }
        pids.insert(locks::ping(session, limit).await?);
        if pids != BTreeSet::from([own]) {
            return Err(pooled(&format!("one connection was answered by the backends {pids:?} and {own}")));
        }
    }
    for other in others {
        other.close().await;
    }
    Ok(())
}

/// What PgBouncer answers in statement mode.
fn refuses_transactions(error: Error) -> Error {
    if error.sqlstate() == Some("08P01") { pooled("it takes no transactions").caused_by(error) } else { error }
}

/// The canary: a second connection must not get the lock that the first holds.
pub(crate) async fn refuse_fake_lock(second: &Session, key: LockKey, pod: &PodId) -> Result<()> {
    if locks::lock_is_fake(second, key).await? {
        return Err(pooled(&format!("two connections took the lock of pod {pod} at once")));
    }
    Ok(())
}

/// What a change of backend during the pod's life is, too.
pub(crate) fn pooled(evidence: &str) -> Error {
    Error::new(ErrorKind::PooledLock, format!("session locks mean nothing on this connection: {evidence}"))
        .left("the pod is not registered")
        .todo(
            "point DATABASE_URL at PostgreSQL itself, or at a pooler in session mode (PgBouncer: pool_mode = session); \
             transaction and statement pooling cannot carry a session lock",
        )
}
