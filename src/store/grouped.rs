//! Statements that make the same write for several runs. [`super::start`] and [`super::owner_writes`] make one write, and
//! keep to the same rules. Each row of a reply answers one write.

use std::sync::Arc;

use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::rows::{Ending, Insert, Owner};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Fence, Incarnation};
use crate::output::{Columns, cut_error};
use crate::pg::pool::Database;
use crate::pg::reply::Reply as _;
use crate::pg::statement::sql;

/// How long a grouped insert waits for another transaction that is inserting one of its keys. The neighbours in the
/// statement wait as well, so this is short. A statement that waits for longer fails, and is tried in smaller parts.
const KEY_PATIENCE: &str = "50ms";

/// The answer to one start of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartAnswer {
    /// The run exists under this fence. The fence is 0 if nobody owns the run.
    Yes(Fence),
    /// The incarnation that should own the run is not in the roster, or drains.
    NoOwner,
    /// The run was not inserted. A start of this run alone finds the reason.
    Ask,
}

/// The answer to one write of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteAnswer {
    Yes,
    /// The owner is fenced, or the write came too late.
    No,
    /// Another transaction has locked the row. A write of this run alone waits for it.
    Locked,
}

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
    pub(super) patience: Option<&'static str>,
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
            patience: runs.iter().any(|run| run.key.is_some()).then_some(KEY_PATIENCE),
        }
    }
}

/// Starts runs that this incarnation owns. Repeating it with the same ids changes nothing. The answers are in the order
/// of `runs`.
pub(crate) async fn start(db: &Database, own: Incarnation, runs: &[Insert<'_>]) -> Result<Vec<StartAnswer>> {
    const SQL: &str = sql!("start_runs", "reach", "above");
    let Inserts { run_ids, kinds, keys, inputs, movables, traces, patience } = Inserts::of(runs);
    let floor = runs.iter().map(|run| run.floor).max().unwrap_or(Fence::from(0)).get();
    let params: [&(dyn ToSql + Sync); 9] =
        [&own.as_uuid(), &run_ids, &kinds, &keys, &inputs, &movables, &traces, &floor, &patience];
    let answer = |row: &Row| {
        Ok(match row.at::<Option<i64>>("fence")? {
            Some(fence) => StartAnswer::Yes(fence.into()),
            None if !row.at::<bool>("has_owner")? => StartAnswer::NoOwner,
            None => StartAnswer::Ask,
        })
    };
    let step = "starting runs";
    answers(step, runs.len(), &db.query(step, SQL, &params).await?, answer)
}

/// Starts runs that nobody owns. The answers are in the order of `runs`.
pub(crate) async fn submit(db: &Database, runs: &[Insert<'_>]) -> Result<Vec<StartAnswer>> {
    let Inserts { run_ids, kinds, keys, inputs, movables, traces, patience } = Inserts::of(runs);
    let nobody: Option<&str> = None;
    let params: [&(dyn ToSql + Sync); 9] =
        [&run_ids, &kinds, &keys, &inputs, &movables, &traces, &nobody, &nobody, &patience];
    let answer = |row: &Row| {
        let is_inserted = row.at::<bool>("is_inserted")?;
        Ok(if is_inserted { StartAnswer::Yes(Fence::from(0)) } else { StartAnswer::Ask })
    };
    let step = "submitting runs";
    answers(step, runs.len(), &db.query(step, SUBMIT, &params).await?, answer)
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

/// Saves checkpoints. No two are of one run. The answers are in their order.
pub(crate) async fn checkpoint(db: &Database, checkpoints: &[&Checkpoint]) -> Result<Vec<WriteAnswer>> {
    const SQL: &str = sql!("save_checkpoints", "mine", "owned_by_each", "still_mine", "stream_length");
    let Owners { run_ids, owners, fences } = Owners::of(checkpoints.iter().map(|c| c.owner));
    let numbers: Vec<i64> = checkpoints.iter().map(|c| c.number).collect();
    let values: Vec<&Value> = checkpoints.iter().map(|c| &*c.value).collect();
    let seqs: Vec<Option<i64>> = checkpoints.iter().map(|c| c.seq).collect();
    let params: [&(dyn ToSql + Sync); 6] = [&run_ids, &owners, &fences, &numbers, &values, &seqs];
    let step = "saving checkpoints";
    answers(step, checkpoints.len(), &db.query(step, SQL, &params).await?, written)
}

/// One end of a group.
#[derive(Debug)]
pub(crate) struct Finish<'a> {
    pub(crate) owner: Owner,
    pub(crate) ending: &'a Ending,
    pub(crate) output: Columns<'a>,
    /// How many chunks the run's stream has, if that must be so.
    pub(crate) seq: Option<i64>,
}

/// Ends runs with the columns of their outputs. No two are of one run. The answers are in their order.
pub(crate) async fn finish(db: &Database, ends: &[Finish<'_>]) -> Result<Vec<WriteAnswer>> {
    const SQL: &str = sql!("finish_runs", "mine", "owned_by_each", "still_mine", "stream_length");
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
    let params: [&(dyn ToSql + Sync); 12] = [
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
    ];
    let step = "ending runs";
    answers(step, ends.len(), &db.query(step, SQL, &params).await?, written)
}

/// Releases runs, each with how its attempt ended. No two are the same. The answers are in their order.
pub(crate) async fn give_back(db: &Database, yields: &[(Owner, &str)]) -> Result<Vec<WriteAnswer>> {
    const SQL: &str = sql!("give_back_runs", "mine", "owned_by_each", "still_mine");
    let Owners { run_ids, owners, fences } = Owners::of(yields.iter().map(|(owner, _)| *owner));
    let reasons: Vec<&str> = yields.iter().map(|(_, reason)| *reason).collect();
    let params: [&(dyn ToSql + Sync); 4] = [&run_ids, &owners, &fences, &reasons];
    let step = "yielding runs";
    answers(step, yields.len(), &db.query(step, SQL, &params).await?, written)
}

fn written(row: &Row) -> Result<WriteAnswer> {
    Ok(match (row.at("is_written")?, row.at("is_mine")?) {
        (true, _) => WriteAnswer::Yes,
        (false, true) => WriteAnswer::Locked,
        (false, false) => WriteAnswer::No,
    })
}

/// The answers in the order of what was asked.
fn answers<T>(step: &str, asked: usize, rows: &[Row], answer: impl Fn(&Row) -> Result<T>) -> Result<Vec<T>> {
    if rows.len() != asked {
        let what = format!("{step}: the server sent {} rows for {asked} runs", rows.len());
        return Err(Error::new(ErrorKind::Database, what).state("some runs may have been written"));
    }
    rows.iter().map(answer).collect()
}
