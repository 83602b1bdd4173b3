//! Guards: the fence of a run in a transaction of the caller's own.

use std::time::Duration;

use futures_util::FutureExt;
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use super::errors;
use super::runs::Owner;
use super::schema::Schema;
use super::txn::Param;
use crate::error::Result;

const STEP: &str = "guarding the caller's transaction";

/// Fails if the run is not the owner's, and keeps it so until the transaction ends. After an error of the server the
/// transaction is aborted. Other languages call the same function.
pub(crate) async fn check(txn: &Transaction<'_>, schema: &Schema, owner: Owner, patience: Duration) -> Result<()> {
    const SQL: &str = "SELECT @.studio_fence_check($1, $2, $3, $4)";
    let (run, incarnation, fence) = (owner.run_id.as_uuid(), owner.incarnation.as_uuid(), owner.fence.get());
    let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    let params: [Param<'_>; 4] =
        [(&run, Type::UUID), (&incarnation, Type::UUID), (&fence, Type::INT8), (&patience, Type::INT4)];
    let checked = txn.query_typed(&schema.sql(SQL), &params).await;
    checked.map(drop).map_err(|e| errors::translate(STEP, e))
}

/// Aborts a transaction whose guard was refused before it was sent: no statement or commit behind this one succeeds. Waits
/// for no answer, which may not come.
pub(crate) fn abort(txn: &Transaction<'_>, schema: &Schema, owner: Owner) {
    let sql = format!("SELECT @.studio_fence_check('{}', '{}', NULL)", owner.run_id, owner.incarnation);
    // The first poll sends it.
    let _ = txn.batch_execute(&schema.sql(&sql)).now_or_never();
}
