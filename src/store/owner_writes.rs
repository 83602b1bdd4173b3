//! Writes by the owner of a run. Each statement names the owner's incarnation and its fence (L5), in
//! `part/owned_by.sql`. A statement that finds no row has changed nothing. The owner is fenced then, or another reason
//! applies that the function names.

use serde_json::Value;
use tokio_postgres::types::ToSql;

use super::rows::{Ending, Owner};
use crate::error::Result;
use crate::output::{Columns, cut_error};
use crate::pg::pool::Database;
use crate::pg::statement::sql;

const CHECKPOINT: &str = sql!("save_checkpoint", "owned_by", "stream_length");
const FINISH: &str = sql!("finish_run", "owned_by", "stream_length");
const GIVE_BACK: &str = sql!("give_back_run", "owned_by");
const TOUCH: &str = sql!("touch_run", "owned_by");

/// Saves a checkpoint under the write number of this attempt. It is progress: crashes of former owners no longer count.
/// Returns false if the owner is fenced, or if a later write of the attempt was accepted first.
///
/// `seq` is how many chunks the run's stream has now; `None` leaves the number unchanged. If the stream has fewer
/// chunks, a failover lost some, and the call returns false as well.
pub(crate) async fn checkpoint(
    db: &Database,
    owner: Owner,
    number: i64,
    value: &Value,
    seq: Option<i64>,
) -> Result<bool> {
    let params: [&(dyn ToSql + Sync); 6] =
        [&owner.run_id.as_uuid(), &owner.incarnation.as_uuid(), &owner.fence.get(), &number, &value, &seq];
    Ok(db.query_opt("saving a checkpoint", CHECKPOINT, &params).await?.is_some())
}

/// The number of a write of an attempt that makes no other.
pub(crate) const ONLY: i64 = i64::MAX;

/// Ends a run with the columns of its output, under the write number of this attempt. Returns false if the owner is
/// fenced, the run had ended, a later write of the attempt was accepted first, or its stream has fewer than `seq`
/// chunks.
pub(crate) async fn finish(
    db: &Database,
    owner: Owner,
    number: i64,
    ending: &Ending,
    output: &Columns<'_>,
    seq: Option<i64>,
) -> Result<bool> {
    let error = ending.error().map(cut_error);
    let params: [&(dyn ToSql + Sync); 13] = [
        &owner.run_id.as_uuid(),
        &owner.incarnation.as_uuid(),
        &owner.fence.get(),
        &ending.state(),
        &output.result,
        &error,
        &output.stdout,
        &output.stderr,
        &output.exit_code,
        &output.escaped,
        &output.parse_error,
        &seq,
        &number,
    ];
    Ok(db.query_opt("ending a run", FINISH, &params).await?.is_some())
}

/// Releases a run, under the write number of this attempt: nobody owns it then, and no crash is counted. `reason` is
/// how the attempt ended: `yielded` or `moved`. Returns false if the owner is fenced, or a later write of the attempt
/// was accepted first.
pub(crate) async fn give_back(db: &Database, owner: Owner, number: i64, reason: &str) -> Result<bool> {
    let params: [&(dyn ToSql + Sync); 5] =
        [&owner.run_id.as_uuid(), &owner.incarnation.as_uuid(), &owner.fence.get(), &reason, &number];
    Ok(db.query_opt("yielding a run", GIVE_BACK, &params).await?.is_some())
}

/// Writes the run's row without changing it, to find out whether small writes succeed. Returns false if the owner is
/// fenced, or another transaction has locked the row.
pub(crate) async fn touch(db: &Database, owner: Owner) -> Result<bool> {
    let params: [&(dyn ToSql + Sync); 3] = [&owner.run_id.as_uuid(), &owner.incarnation.as_uuid(), &owner.fence.get()];
    Ok(db.query_opt("trying a small write", TOUCH, &params).await?.is_some())
}
