//! Statements that make the same write for several runs. [`super::start`] and [`super::owner_writes`] make one write, and
//! keep to the same rules.
//!
//! A reply tells which writes were made. It does not tell why another was not: a locked row, a busy key, a lost run. The
//! statement for one write finds that, and waits where it must.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::rows::{Ending, Insert, Owner};
use crate::error::Result;
use crate::id::{Fence, Incarnation};
use crate::output::{Columns, cut_error};
use crate::pg::pool::Database;
use crate::pg::reply::Reply as _;
use crate::pg::statement::sql;

/// How long a grouped insert waits for another transaction that is inserting one of its keys. The neighbours in the
/// statement wait as well, so this is short. A statement that waits for longer fails, and is tried in smaller parts.
const KEY_PATIENCE: &str = "50ms";

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

/// Starts runs that this incarnation owns. Repeating it with the same ids changes nothing. The fences are in the order of
/// `runs`; `None`: the run was not inserted.
pub(crate) async fn start(db: &Database, own: Incarnation, runs: &[Insert<'_>]) -> Result<Vec<Option<Fence>>> {
    const SQL: &str = sql!("start_runs", "reach", "above");
    let Inserts { run_ids, kinds, keys, inputs, movables, traces, patience } = Inserts::of(runs);
    let floor = runs.iter().map(|run| run.floor).max().unwrap_or(Fence::from(0)).get();
    let params: [&(dyn ToSql + Sync); 9] =
        [&own.as_uuid(), &run_ids, &kinds, &keys, &inputs, &movables, &traces, &floor, &patience];
    let rows = db.query("starting runs", SQL, &params).await?;
    by_run(&run_ids, &rows, |row| row.at::<i64>("fence").map(Fence::from))
}

/// Starts runs that nobody owns. The answers are in the order of `runs`; `None`: the run was not inserted.
pub(crate) async fn submit(db: &Database, runs: &[Insert<'_>]) -> Result<Vec<Option<Fence>>> {
    let Inserts { run_ids, kinds, keys, inputs, movables, traces, patience } = Inserts::of(runs);
    let nobody: Option<&str> = None;
    let params: [&(dyn ToSql + Sync); 9] =
        [&run_ids, &kinds, &keys, &inputs, &movables, &traces, &nobody, &nobody, &patience];
    let rows = db.query("submitting runs", SUBMIT, &params).await?;
    by_run(&run_ids, &rows, |_| Ok(Fence::from(0)))
}

/// What the rows say of these runs, in their order. A run without a row was not inserted.
fn by_run<T>(runs: &[Uuid], rows: &[Row], read: impl Fn(&Row) -> Result<T>) -> Result<Vec<Option<T>>> {
    let mut of: HashMap<Uuid, T> = HashMap::with_capacity(rows.len());
    for row in rows {
        of.insert(row.at("run_id")?, read(row)?);
    }
    Ok(runs.iter().map(|run| of.remove(run)).collect())
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
pub(crate) async fn checkpoint(db: &Database, checkpoints: &[&Checkpoint]) -> Result<Vec<Option<()>>> {
    const SQL: &str = sql!("save_checkpoints", "owned_by_each", "stream_length");
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
    pub(crate) ending: &'a Ending,
    pub(crate) output: Columns<'a>,
    /// How many chunks the run's stream has, if that must be so.
    pub(crate) seq: Option<i64>,
}

/// Ends runs with the columns of their outputs. No two are of one attempt. The answers are in their order.
pub(crate) async fn finish(db: &Database, ends: &[Finish<'_>]) -> Result<Vec<Option<()>>> {
    const SQL: &str = sql!("finish_runs", "owned_by_each", "stream_length");
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
    made(ends.len(), &db.query("ending runs", SQL, &params).await?)
}

/// Releases runs, each with how its attempt ended. No two are of one attempt. The answers are in their order.
pub(crate) async fn give_back(db: &Database, yields: &[(Owner, &str)]) -> Result<Vec<Option<()>>> {
    const SQL: &str = sql!("give_back_runs", "owned_by_each");
    let Owners { run_ids, owners, fences } = Owners::of(yields.iter().map(|(owner, _)| *owner));
    let reasons: Vec<&str> = yields.iter().map(|(_, reason)| *reason).collect();
    let params: [&(dyn ToSql + Sync); 4] = [&run_ids, &owners, &fences, &reasons];
    made(yields.len(), &db.query("yielding runs", SQL, &params).await?)
}

/// Which of so many writes were made, in their order. The rows have the numbers of those that were, from 1 on.
fn made(of: usize, rows: &[Row]) -> Result<Vec<Option<()>>> {
    let mut made = vec![None; of];
    for row in rows {
        let nth = usize::try_from(row.at::<i64>("nth")?).ok().and_then(|nth| nth.checked_sub(1));
        if let Some(place) = nth.and_then(|nth| made.get_mut(nth)) {
            *place = Some(());
        }
    }
    Ok(made)
}
