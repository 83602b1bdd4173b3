//! Guards a handler's own transaction with the run's fence.

use std::sync::atomic::Ordering;

use tokio_postgres::Transaction;

use super::StopReason;
use super::engine::Engine;
use super::registry::StopSignal;
use crate::error::{Error, Result};
use crate::protocol::state::RunState;
use crate::store::guards;
use crate::store::runs::{self, Owner};

/// Locks the run's row in the handler's transaction. `over`: the reason why the run may not write any more, if there is
/// one already.
pub(super) async fn take(
    engine: &Engine,
    owner: Owner,
    stop: &StopSignal,
    over: Option<Error>,
    txn: &Transaction<'_>,
) -> Result<()> {
    const ABORTED: &str = "nothing of the transaction can be committed";
    let schema = engine.db.schema();
    if let Some(error) = over {
        guards::abort(txn, schema, owner);
        return Err(error.state(ABORTED));
    }
    let error = match guards::check(txn, schema, owner, engine.member.settings.lease / 2).await {
        Ok(()) => {
            engine.member.accepted_writes.fetch_add(1, Ordering::AcqRel);
            return Ok(());
        }
        Err(e) => e.about_run(owner.run_id).state(ABORTED),
    };
    if !error.is_fenced() {
        return Err(error);
    }
    // The error has the same words as the error of other writes. The run is certainly fenced, even if its row cannot be
    // read now.
    let Ok(status) = runs::status(&engine.db, owner.run_id).await else {
        stop.fire(StopReason::Fenced);
        return Err(error);
    };
    let cancelled = status.as_ref().is_some_and(|s| RunState::Cancelled.is(&s.state));
    stop.fire(if cancelled { StopReason::Cancelled } else { StopReason::Fenced });
    let sqlstate = error.sqlstate().map(str::to_owned).unwrap_or_default();
    let fenced = runs::fenced("a guard", owner, status.as_ref()).state(ABORTED).with_sqlstate(&sqlstate);
    Err(fenced.caused_by(error))
}
