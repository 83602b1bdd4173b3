//! Quarantines a run whose row fails every claim.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::error::Result;
use crate::id::Incarnation;
use crate::pg::pool::Database;
use crate::pg::statement::sql;
use crate::protocol::fences::JUMP;
use crate::protocol::recover::Candidate;

const QUARANTINE: &str = sql!("quarantine_run");

/// Quarantines a run that cannot be claimed, if its row has not changed since it was read and its owner is gone.
/// Returns false otherwise. `why` becomes the run's error and is in the event.
pub(crate) async fn quarantine(db: &Database, own: Incarnation, run: &Candidate, why: &str) -> Result<bool> {
    let expected: Option<Uuid> = run.owner.map(|owner| owner.as_uuid());
    let params: [&(dyn ToSql + Sync); 6] =
        [&own.as_uuid(), &run.run_id.as_uuid(), &expected, &run.fence.get(), &JUMP, &why];
    Ok(db.query_opt("quarantining a run that cannot be claimed", QUARANTINE, &params).await?.is_some())
}
