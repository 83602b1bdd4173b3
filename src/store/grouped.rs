//! Statements that make the same write for several runs. [`super::start`] and [`super::owner_writes`] make one write,
//! and keep to the same rules.
//!
//! A reply tells which writes were made, and which writes' owners have lost their runs. Of the others it tells nothing:
//! a row is locked, a key is taken, a later write of the attempt was made, or the stream is shorter. The statement for
//! one write waits where it must, and finds the reason.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::rows::{Ending, Insert, Owner};
use crate::error::Result;
use crate::id::{Fence, Incarnation, RunId};
use crate::output::{Columns, cut_error};
use crate::pg::pool::Database;
use crate::pg::reply::Reply as _;
use crate::pg::statement::sql;

/// How long a grouped insert waits for another transaction that is inserting one of its keys. The neighbours in the
/// statement wait as well, so this is short. A statement that waits for longer fails, and is tried in smaller parts.
const KEY_PATIENCE_MS: i32 = 50;

/// Also runs on a caller's own connection, under the caller's `search_path` ([`super::start`]).
pub(super) const SUBMIT: &str = sql!("submit_runs");

/// The columns of a multi-row insert.
pub(super) struct Inserts<'a> {
    pub(super) run_ids: Vec<Uuid>,
    pub(super) kinds: Vec<&'a str>,
    pub(super) keys: Vec<Option<&'a str>>,
    pub(super) inputs: Vec<&'a Value>,
    pub(super) movables: Vec<bool>,
    pub(super) traces: Vec<&'a str>,
    /// Only keys can make an insert wait.
    pub(super) patience: Option<i32>,
}

impl<'a> Inserts<'a> {
    pub(super) fn of(runs: &[Insert<'a>]) -> Self {
        Self {
            run_ids: runs.iter().map(|run| run.run_id.as_uuid()).collect(),
            kinds: runs.iter().map(|run| run.kind).collect(),
            keys: runs.iter().map(|run| run.key).collect(),
            inputs: runs.iter().map(|run| run.input).collect(),
            movables: runs.iter().map(|run| run.movable).collect(),
            traces: runs.iter().map(|run| run.traceparent).collect(),
            patience: runs.iter().any(|run| run.key.is_some()).then_some(KEY_PATIENCE_MS),
        }
    }
}

/// What became of a group of inserts.
#[derive(Debug, Default)]
pub(crate) struct Starts {
    /// The runs that were inserted, with their fences. A fence is 0 if nobody owns the run.
    pub(crate) inserted: HashMap<RunId, Fence>,
    /// Whether the incarnation that should own the runs is in the roster, and does not drain.
    pub(crate) has_owner: bool,
}

/// Starts runs that this incarnation owns. Repeating it with the same ids changes nothing.
pub(crate) async fn start(db: &Database, own: Incarnation, runs: &[Insert<'_>]) -> Result<Starts> {
    const SQL: &str = sql!("start_runs", "reach", "above");
    let Inserts { run_ids, kinds, keys, inputs, movables, traces, patience } = Inserts::of(runs);
    let floor = runs.iter().map(|run| run.floor).max().unwrap_or(Fence::from(0)).get();
    let params: [&(dyn ToSql + Sync); 9] =
        [&own.as_uuid(), &run_ids, &kinds, &keys, &inputs, &movables, &traces, &floor, &patience];
    let Some(row) = db.query_opt("starting runs", SQL, &params).await? else { return Ok(Starts::default()) };
    let fences = row.at::<Option<Vec<i64>>>("fences")?.unwrap_or_default();
    let inserted = run_ids_of(&row)?.into_iter().map(RunId::from).zip(fences.into_iter().map(Fence::from)).collect();
    Ok(Starts { inserted, has_owner: row.at("has_owner")? })
}

/// Starts runs that nobody owns.
pub(crate) async fn submit(db: &Database, runs: &[Insert<'_>]) -> Result<Starts> {
    let Inserts { run_ids, kinds, keys, inputs, movables, traces, patience } = Inserts::of(runs);
    let nobody: Option<&str> = None;
    let params: [&(dyn ToSql + Sync); 9] =
        [&run_ids, &kinds, &keys, &inputs, &movables, &traces, &nobody, &nobody, &patience];
    let Some(row) = db.query_opt("submitting runs", SUBMIT, &params).await? else { return Ok(Starts::default()) };
    let inserted = run_ids_of(&row)?.into_iter().map(|run| (run.into(), Fence::from(0))).collect();
    Ok(Starts { inserted, has_owner: true })
}

/// The runs that a statement of [`SUBMIT`] or [`start`] has inserted.
pub(super) fn run_ids_of(row: &Row) -> Result<Vec<Uuid>> {
    Ok(row.at::<Option<Vec<Uuid>>>("run_ids")?.unwrap_or_default())
}

/// One checkpoint of a group.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) owner: Owner,
    /// The number of the write among those of its attempt.
    pub(crate) number: i64,
    pub(crate) value: Arc<Value>,
    /// How many chunks the run's stream has now. `None` leaves the number unchanged.
    pub(crate) seq: Option<i64>,
}

/// The columns that say whose writes these are (L5).
struct Owners {
    run_ids: Vec<Uuid>,
    owners: Vec<Uuid>,
    fences: Vec<i64>,
}

impl Owners {
    fn of(owners: impl Iterator<Item = Owner> + Clone) -> Self {
        Self {
            run_ids: owners.clone().map(|owner| owner.run_id.as_uuid()).collect(),
            owners: owners.clone().map(|owner| owner.incarnation.as_uuid()).collect(),
            fences: owners.map(|owner| owner.fence.get()).collect(),
        }
    }
}

/// Saves checkpoints. No two are of one attempt. The answers are in their order.
pub(crate) async fn checkpoint(db: &Database, checkpoints: &[&Checkpoint]) -> Result<Vec<Option<bool>>> {
    const SQL: &str = sql!("save_checkpoints", "owned_by_each", "stream_length", "looked", "lost");
    let Owners { run_ids, owners, fences } = Owners::of(checkpoints.iter().map(|c| c.owner));
    let numbers: Vec<i64> = checkpoints.iter().map(|c| c.number).collect();
    let values: Vec<&Value> = checkpoints.iter().map(|c| &*c.value).collect();
    let seqs: Vec<Option<i64>> = checkpoints.iter().map(|c| c.seq).collect();
    let params: [&(dyn ToSql + Sync); 6] = [&run_ids, &owners, &fences, &numbers, &values, &seqs];
    made(checkpoints.len(), &db.query("saving checkpoints", SQL, &params).await?)
}

/// One end of a group.
#[derive(Debug)]
pub(crate) struct Finish<'a> {
    pub(crate) owner: Owner,
    /// The number of the write among those of its attempt.
    pub(crate) number: i64,
    pub(crate) ending: &'a Ending,
    pub(crate) output: Columns<'a>,
    /// How many chunks the run's stream has, if that must be so.
    pub(crate) seq: Option<i64>,
}

/// Ends runs with the columns of their outputs. No two are of one attempt. The answers are in their order.
pub(crate) async fn finish(db: &Database, ends: &[Finish<'_>]) -> Result<Vec<Option<bool>>> {
    const SQL: &str = sql!("finish_runs", "owned_by_each", "stream_length", "looked", "lost");
    let Owners { run_ids, owners, fences } = Owners::of(ends.iter().map(|end| end.owner));
    let states: Vec<&str> = ends.iter().map(|end| end.ending.state()).collect();
    let results: Vec<Option<&Value>> = ends.iter().map(|end| end.output.result).collect();
    let errors: Vec<_> = ends.iter().map(|end| end.ending.error().map(cut_error)).collect();
    let stdouts: Vec<&str> = ends.iter().map(|end| &*end.output.stdout).collect();
    let stderrs: Vec<&str> = ends.iter().map(|end| &*end.output.stderr).collect();
    let exit_codes: Vec<Option<i32>> = ends.iter().map(|end| end.output.exit_code).collect();
    let escaped: Vec<bool> = ends.iter().map(|end| end.output.escaped).collect();
    let parse_errors: Vec<Option<&str>> = ends.iter().map(|end| end.output.parse_error).collect();
    let seqs: Vec<Option<i64>> = ends.iter().map(|end| end.seq).collect();
    let numbers: Vec<i64> = ends.iter().map(|end| end.number).collect();
    let params: [&(dyn ToSql + Sync); 13] = [
        &run_ids,
        &owners,
        &fences,
        &states,
        &results,
        &errors,
        &stdouts,
        &stderrs,
        &exit_codes,
        &escaped,
        &parse_errors,
        &seqs,
        &numbers,
    ];
    made(ends.len(), &db.query("ending runs", SQL, &params).await?)
}

/// A run to release, and how its attempt ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Release {
    pub(crate) owner: Owner,
    /// The number of the write among those of its attempt.
    pub(crate) number: i64,
    pub(crate) reason: &'static str,
}

/// Releases runs. No two are of one attempt. The answers are in their order.
pub(crate) async fn give_back(db: &Database, yields: &[&Release]) -> Result<Vec<Option<bool>>> {
    const SQL: &str = sql!("give_back_runs", "owned_by_each", "stream_length", "looked", "lost");
    let Owners { run_ids, owners, fences } = Owners::of(yields.iter().map(|release| release.owner));
    let reasons: Vec<&str> = yields.iter().map(|release| release.reason).collect();
    let numbers: Vec<i64> = yields.iter().map(|release| release.number).collect();
    let params: [&(dyn ToSql + Sync); 5] = [&run_ids, &owners, &fences, &reasons, &numbers];
    made(yields.len(), &db.query("yielding runs", SQL, &params).await?)
}

/// For each of `of` writes, in their order: `Some(true)`: it was made. `Some(false)`: its owner has lost the run.
/// `None`: it was not made, and the statement cannot tell why.
fn made(of: usize, rows: &[Row]) -> Result<Vec<Option<bool>>> {
    let mut made = vec![None; of];
    for row in rows {
        // The numbers are those of the rows, from 1 on.
        let nth = usize::try_from(row.at::<i64>("nth")?).ok().and_then(|nth| nth.checked_sub(1));
        if let Some(place) = nth.and_then(|nth| made.get_mut(nth)) {
            *place = Some(row.at("is_made")?);
        }
    }
    Ok(made)
}
