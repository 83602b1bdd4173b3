//! Checks that a session stays with one server process. This happens before anything is set on a session, and before
//! any lock is taken.
//!
//! The danger is a pooler in transaction mode: it gives each transaction any backend. A session lock then stays on a
//! backend that serves others. So does a setting: with our `search_path`, the application no longer finds its tables.
//! So the check runs on bare sessions, which set nothing and lock nothing.

use std::collections::BTreeSet;

use super::errors::{OTHERS, name_full_pool, pooled, refuses_transactions};
use super::session::{Opener, Purpose, Session};
use crate::error::Result;

/// How many rounds to make if a proxy or pooler may stand between us and the server. One comparison missed a pooler in
/// half of the starts (see `refuse`), so eight miss it in one start of some hundred at most. Each further round delays
/// a start behind a proxy by a few round trips. For a direct connection one round is enough.
const ROUNDS: usize = 8;
const STEP: &str = "checking for a pooler";
const BESIDE: Purpose = Purpose { label: "beside", has_long_transactions: false };

/// Opens a session that is proven to stay with one backend, and sets it up. `left` says in an error what state is left.
pub(crate) async fn open_proven(opener: &Opener, purpose: impl Into<Purpose>, left: &str) -> Result<Session> {
    let session = opener.open_bare(purpose).await?;
    refuse(opener, &session).await.map_err(|e| e.state(left))?;
    session.set_up(opener).await?;
    Ok(session)
}

/// Refuses a transaction pooler, and leaves nothing on its backends.
pub(crate) async fn check(opener: &Opener, purpose: impl Into<Purpose>, left: &str) -> Result<()> {
    let session = opener.open_bare(purpose).await?;
    refuse(opener, &session).await.map_err(|e| e.state(left))?;
    session.close().await;
    Ok(())
}

/// Proves that a session stays with one backend: in each transaction the same pid must answer, while other connections
/// hold transactions open. One try proves nothing: a pooler in transaction mode was not noticed in 15 of 30 boots that
/// compared once.
async fn refuse(opener: &Opener, session: &Session) -> Result<()> {
    let (rounds, beside) = if session.facts().direct { (1, 0) } else { (ROUNDS, OTHERS) };
    let limit = opener.limits.statement;
    let mut others = Vec::with_capacity(beside);
    for _ in 0..beside {
        others.push(opener.open_bare(BESIDE).await?);
    }
    let own = session.backend().pid;
    for _ in 0..rounds {
        let mut pids = BTreeSet::from([session.ping(limit).await?]);
        let mut transactions = Vec::with_capacity(others.len());
        for other in &mut others {
            let begun = other.begin(STEP).await;
            let txn = begun.map_err(|e| refuses_transactions(name_full_pool(e, &opener.limits)))?;
            let pid = txn.backend_pid(STEP).await?;
            transactions.push(txn);
            if pid == own {
                return Err(pooled("two connections share one backend"));
            }
        }
        pids.insert(session.ping(limit).await?);
        if pids != BTreeSet::from([own]) {
            return Err(pooled(&format!("one connection was answered by the backends {pids:?} and {own}")));
        }
    }
    for other in others {
        other.close().await;
    }
    Ok(())
}
