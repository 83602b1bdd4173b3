//! Guards: check the fence of a run in the caller's own transaction.

use std::time::Duration;

use futures_util::FutureExt;
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;

use super::rows::Owner;
use crate::error::Result;
use crate::pg::errors;
use crate::pg::schema::Schema;
use crate::pg::txn::Param;

const STEP: &str = "guarding the caller's transaction";
/// Both statements run under the user's `search_path`, so every name in them is pinned (`super::pins`). Each passes all
/// four arguments: PostgreSQL would prefer a function with exactly three parameters to ours with its default.
const CHECK: &str = "SELECT @.studio_fence_check($1::pg_catalog.uuid, $2::pg_catalog.uuid, $3::bigint, $4::integer) \
     AS checked";
const REFUSE: &str = "SELECT @.studio_fence_check('$run'::pg_catalog.uuid, '$incarnation'::pg_catalog.uuid, \
     NULL::bigint, 5000::integer) AS checked";

/// Fails if the run is not the owner's. Otherwise the run stays the owner's until the transaction ends. After an error
/// of the server the transaction is aborted. Other languages call the same SQL function.
pub(crate) async fn check(txn: &Transaction<'_>, schema: &Schema, owner: Owner, patience: Duration) -> Result<()> {
    let (run, incarnation, fence) = (owner.run_id.as_uuid(), owner.incarnation.as_uuid(), owner.fence.get());
    let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    let params: [Param<'_>; 4] =
        [(&run, Type::UUID), (&incarnation, Type::UUID), (&fence, Type::INT8), (&patience, Type::INT4)];
    let checked = txn.query_typed(&schema.sql(CHECK), &params).await;
    checked.map(drop).map_err(|e| errors::translate(STEP, e))
}

/// Aborts a transaction whose guard was refused before it was sent. No later statement or commit of that transaction
/// succeeds. Does not wait for the server's answer, which may not come.
pub(crate) fn abort(txn: &Transaction<'_>, schema: &Schema, owner: Owner) {
    let sql = schema
        .sql(REFUSE)
        .replace("$run", &owner.run_id.to_string())
        .replace("$incarnation", &owner.incarnation.to_string());
    // The first poll sends the statement.
    let _ = txn.batch_execute(&sql).now_or_never();
}

#[cfg(test)]
mod tests {
    use super::super::pins::unpinned;
    use super::*;

    #[test]
    fn guards_are_pinned() {
        for sql in [CHECK, REFUSE] {
            assert_eq!(unpinned(sql), Vec::<String>::new(), "{sql}");
        }
    }
}
