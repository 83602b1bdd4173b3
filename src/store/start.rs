//! Starts runs. Repeating a start with the same id changes nothing, so a start whose reply was lost is sent again.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::fences;
use super::grouped::{Inserts, SUBMIT as SUBMIT_MANY, run_ids_of};
use super::rows::{Holder, Insert, Inserted};
use super::runs::status_for;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Fence, Incarnation, RunId, traceparent};
use crate::pg::errors;
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::schema::Schema;
use crate::pg::statement::sql;
use crate::protocol::notices::Word;
use crate::protocol::state::RunState;

const START: &str = sql!("start_run", "reach", "above");
const RESTART: &str = sql!("restart_run");
/// The statements of [`start_in_txn`] and [`submit_in_txn`] run on the user's own connection, under the user's
/// `search_path`. They name the schema of every operator, function and type, and give every literal a type. A test
/// checks that (`super::pins`).
const START_IN_TXN: &str = sql!("start_runs_in_txn");
const SUBMIT: &str = sql!("submit_run");
const FIND_KEY_HOLDERS: &str = sql!("find_key_holders");

/// How often a start tries to take a key. A try is repeated if the run that had the key ends between the insert and
/// the query for that run. Each try that fails so means that a run of the key began and ended meanwhile. After five,
/// the key is contended, and the caller is told so instead of waiting longer.
const KEY_TRIES: usize = 5;

/// Starts a run that this incarnation owns and runs at once. Repeating it with the same id changes nothing.
pub(crate) async fn start(db: &Database, owner: Incarnation, new: &Insert<'_>) -> Result<Inserted> {
    let step = "starting a run";
    let (owner_id, run_id, floor) = (owner.as_uuid(), new.run_id.as_uuid(), new.floor.get());
    let params: [&(dyn ToSql + Sync); 8] =
        [&owner_id, &run_id, &new.kind, &new.key, &new.input, &floor, &new.movable, &new.traceparent];
    for _ in 0..KEY_TRIES {
        let row = one(step, db.query_opt(step, START, &params).await?)?;
        if let Some(fence) = row.at::<Option<i64>>("fence")? {
            return Ok(Inserted::Yes(fence.into()));
        }
        if !row.at::<bool>("has_owner")? {
            return Ok(Inserted::NoOwner);
        }
        if row.at::<bool>("is_cordoned")? {
            // An earlier try may have been committed before the cordon.
            return Ok(conflict(db, step, Some(owner), new).await?.unwrap_or(Inserted::Cordoned));
        }
        if !row.at::<bool>("in_reach")? {
            fences::raise(db, new.floor).await?;
            continue;
        }
        if let Some(outcome) = conflict(db, step, Some(owner), new).await? {
            return Ok(outcome);
        }
    }
    Err(contended(new))
}

/// Starts a run that nobody owns.
pub(crate) async fn submit(db: &Database, new: &Insert<'_>) -> Result<Inserted> {
    let step = "submitting a run";
    let (nobody, run_id): (Option<&str>, _) = (None, new.run_id.as_uuid());
    let params: [&(dyn ToSql + Sync); 8] =
        [&run_id, &new.kind, &new.key, &new.input, &nobody, &nobody, &new.movable, &new.traceparent];
    for _ in 0..KEY_TRIES {
        if db.query_opt(step, SUBMIT, &params).await?.is_some() {
            return Ok(Inserted::Yes(Fence::from(0)));
        }
        if let Some(outcome) = conflict(db, step, None, new).await? {
            return Ok(outcome);
        }
    }
    Err(contended(new))
}

/// Starts a run that nobody owns, with the kind, key, input and `movable` of a run that has ended. The input is copied
/// in the server, so every digit of it stays the same. Returns false if there is no such run, it is still running, or
/// its key is taken. The new run begins a trace of its own.
pub(crate) async fn restart(db: &Database, ended: RunId, new: RunId) -> Result<bool> {
    let trace = traceparent::generate();
    let params: [&(dyn ToSql + Sync); 3] = [&ended.as_uuid(), &new.as_uuid(), &trace];
    Ok(db.query_opt("starting a run again", RESTART, &params).await?.is_some())
}

/// Starts runs as [`start`], in the caller's transaction on the caller's connection. `owner` begins their first
/// attempts once the transaction has committed. The commit notifies the channel `told`. The results are in the order of
/// `new`.
pub(crate) async fn start_in_txn(
    txn: &tokio_postgres::Transaction<'_>,
    schema: &Schema,
    owner: Incarnation,
    new: &[Insert<'_>],
    told: Option<&str>,
) -> Result<Vec<Result<Inserted>>> {
    let Inserts { run_ids, kinds, keys, inputs, movables, traces, patience: _ } = Inserts::of(new);
    let (owner, floor) = (owner.as_uuid(), new.iter().map(|new| new.floor).max().unwrap_or(Fence::from(0)));
    let params: [&(dyn ToSql + Sync); 9] =
        [&owner, &run_ids, &kinds, &keys, &inputs, &movables, &traces, &floor.get(), &told];
    let row = txn.query_one(&*schema.sql(START_IN_TXN), &params).await.map_err(fail_in_txn)?;
    if !row.at::<bool>("has_owner")? {
        return Ok(new.iter().map(|_| Ok(Inserted::NoOwner)).collect());
    }
    if row.at::<bool>("is_cordoned")? {
        return Ok(new.iter().map(|_| Ok(Inserted::Cordoned)).collect());
    }
    if !row.at::<bool>("in_reach")? {
        return Ok(new.iter().map(|_| Err(fences::not_risen(floor))).collect());
    }
    settled_in_txn(txn, schema, new, run_ids_of(&row)?.into_iter().collect()).await
}

/// Starts runs as [`submit`], in the caller's transaction on the caller's connection. The commit sends the notice
/// `told` to its channel. The results are in the order of `new`.
pub(crate) async fn submit_in_txn(
    txn: &tokio_postgres::Transaction<'_>,
    schema: &Schema,
    new: &[Insert<'_>],
    told: Option<(&String, Word)>,
) -> Result<Vec<Result<Inserted>>> {
    let (channel, word) = (told.map(|(channel, _)| channel), told.map(|(_, word)| word.as_str()));
    let Inserts { run_ids, kinds, keys, inputs, movables, traces, patience: _ } = Inserts::of(new);
    // The caller's own time-outs hold.
    let patience: Option<i32> = None;
    let params: [&(dyn ToSql + Sync); 9] =
        [&run_ids, &kinds, &keys, &inputs, &movables, &traces, &channel, &word, &patience];
    let row = txn.query_one(&*schema.sql(SUBMIT_MANY), &params).await.map_err(fail_in_txn)?;
    settled_in_txn(txn, schema, new, run_ids_of(&row)?.into_iter().collect()).await
}

fn fail_in_txn(error: tokio_postgres::Error) -> Error {
    errors::translate("starting a run in the caller's transaction", error)
}

/// The results, in the order of `new`. For each run that was not inserted, finds the run that has its key. The inner
/// errors are about one run each.
async fn settled_in_txn(
    txn: &tokio_postgres::Transaction<'_>,
    schema: &Schema,
    new: &[Insert<'_>],
    inserted: HashSet<Uuid>,
) -> Result<Vec<Result<Inserted>>> {
    let is_in = |new: &Insert<'_>| inserted.contains(&new.run_id.as_uuid());
    let refused: Vec<&Insert<'_>> = new.iter().filter(|new| !is_in(new)).collect();
    let holders = if refused.is_empty() {
        Holders::default()
    } else {
        let (kinds, keys) = kinds_and_keys(&refused);
        let rows = txn.query(&*schema.sql(FIND_KEY_HOLDERS), &[&kinds, &keys]).await.map_err(fail_in_txn)?;
        Holders::of(&rows)?
    };
    let of = |new: &Insert<'_>| {
        if is_in(new) {
            return Ok(Inserted::Yes(Fence::from(0)));
        }
        let key = new.key.unwrap_or_default();
        holders.has_key_of(new).ok_or_else(|| {
            Error::new(ErrorKind::KeyBusy, format!("a run with key {key:?} is running"))
                .state("no run was started; the transaction is as it was")
                .help("under an isolation level that cannot see it, begin a new transaction to find it")
        })
    };
    Ok(new.iter().map(of).collect())
}

/// The runs that have keys.
#[derive(Debug, Default)]
pub(crate) struct Holders(HashMap<(String, String), Inserted>);

impl Holders {
    fn of(rows: &[Row]) -> Result<Self> {
        let mut holders = HashMap::with_capacity(rows.len());
        for row in rows {
            holders.insert((row.at::<String>("kind")?, row.at::<String>("key")?), key_busy(row)?);
        }
        Ok(Self(holders))
    }

    /// The other run that has the key of this one.
    pub(crate) fn has_key_of(&self, new: &Insert<'_>) -> Option<Inserted> {
        let holder = self.0.get(&(new.kind.to_owned(), new.key?.to_owned())).copied()?;
        (!matches!(holder, Inserted::KeyBusy(run_id, _) if run_id == new.run_id)).then_some(holder)
    }
}

/// Finds the running runs that have the keys of these.
pub(crate) async fn find_holders(db: &Database, new: &[&Insert<'_>]) -> Result<Holders> {
    let (kinds, keys) = kinds_and_keys(new);
    if keys.is_empty() {
        return Ok(Holders::default());
    }
    Holders::of(&db.query("finding the runs that have the keys", FIND_KEY_HOLDERS, &[&kinds, &keys]).await?)
}

fn kinds_and_keys<'a>(new: &[&Insert<'a>]) -> (Vec<&'a str>, Vec<&'a str>) {
    new.iter().filter_map(|new| Some((new.kind, new.key?))).unzip()
}

/// Finds the row that was in the way of an insert: its own, from a try whose reply was lost, or another run with the
/// same key. `None`: the row is gone by now.
async fn conflict(db: &Database, step: &str, owner: Option<Incarnation>, new: &Insert<'_>) -> Result<Option<Inserted>> {
    if let Some(own) = status_for(step, db, new.run_id).await? {
        if owner.is_none() || (own.owner == owner && RunState::Running.is(&own.state)) {
            return Ok(Some(Inserted::Yes(own.fence)));
        }
        return Err(Error::new(
            ErrorKind::Fenced,
            format!("run {} was started, and has ended or moved on by now", new.run_id),
        )
        .about_run(new.run_id)
        .done_before()
        .help("follow it by its id"));
    }
    let (kinds, keys) = kinds_and_keys(&[new]);
    let busy = db.query_opt(step, FIND_KEY_HOLDERS, &[&kinds, &keys]).await?;
    busy.as_ref().map(key_busy).transpose()
}

fn key_busy(row: &Row) -> Result<Inserted> {
    let holder = match (row.at("is_owned")?, row.at("has_owner")?) {
        (false, _) => Holder::Nobody,
        (true, false) => Holder::Gone,
        (true, true) => Holder::Pod,
    };
    Ok(Inserted::KeyBusy(row.at::<Uuid>("run_id")?.into(), holder))
}

fn contended(new: &Insert<'_>) -> Error {
    let key = new.key.unwrap_or_default();
    Error::new(ErrorKind::KeyBusy, format!("runs with key {key:?} come and go faster than one can be started"))
        .state("no run was started")
        .help("start it again")
}

fn one(step: &str, row: Option<Row>) -> Result<Row> {
    row.ok_or_else(|| Error::new(ErrorKind::Database, format!("{step}: the server sent no row")))
}

#[cfg(test)]
mod tests {
    use super::super::pins::unpinned;
    use super::*;

    #[test]
    fn statements_on_the_users_connection_are_pinned() {
        for sql in [START_IN_TXN, SUBMIT, SUBMIT_MANY, FIND_KEY_HOLDERS] {
            assert!(sql.starts_with("-- Runs on a caller's connection"), "the first line says so: {sql}");
            assert_eq!(unpinned(sql), Vec::<String>::new(), "{sql}");
        }
    }
}
