//! Starting runs: owned by this pod or by nobody, in our transaction or the caller's.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::{NewRun, Started, execute};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Fence, Incarnation, RunId};
use crate::pod::shared::Shared;
use crate::postgres::runs::{self, Claimed, Insert, Inserted};

/// How often a start whose reply was lost is repeated, under the same id.
const TRIES: usize = 3;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// Starts a run that this pod owns, and begins it.
pub(crate) async fn start(shared: &Arc<Shared>, new: NewRun) -> Result<Started> {
    let incarnation = shared.may_take_work()?;
    check(&new)?;
    let handler = shared.handlers.get(&new.kind).cloned().ok_or_else(|| no_handler(shared, &new.kind))?;
    let run_id = RunId::generate();
    let place = shared.registry.reserve(run_id).ok_or_else(|| full(shared))?;
    let insert = insert_of(run_id, &new);
    let inserted = repeat(run_id, || runs::start(&shared.db, incarnation, &insert)).await?;
    let fence = outcome(shared, inserted, &new)?;
    let claimed =
        Claimed { run_id, kind: new.kind, key: new.key, fence, attempt: 1, input: new.input, checkpoint: None };
    execute::begin(shared, handler, place, claimed, incarnation);
    Ok(Started { run_id, incarnation, fence })
}

/// Starts a run that nobody owns: any pod with a handler and room takes it up.
pub(crate) async fn submit(shared: &Shared, new: &NewRun) -> Result<RunId> {
    check(new)?;
    let run_id = RunId::generate();
    let insert = insert_of(run_id, new);
    let inserted = repeat(run_id, || runs::submit(&shared.db, &insert)).await?;
    outcome(shared, inserted, new).map(|_| run_id)
}

/// Starts a run in the caller's transaction. With `owned`, this pod takes it up once the transaction has committed.
pub(crate) async fn insert_in_txn(
    shared: &Shared,
    txn: &tokio_postgres::Transaction<'_>,
    new: &NewRun,
    owned: bool,
) -> Result<RunId> {
    check(new)?;
    let owner: Option<Incarnation> = if owned {
        if !shared.handlers.contains_key(&new.kind) {
            return Err(no_handler(shared, &new.kind));
        }
        if shared.registry.room() == 0 {
            return Err(full(shared));
        }
        Some(shared.may_take_work()?)
    } else {
        None
    };
    let run_id = RunId::generate();
    let inserted = runs::insert_in_txn(txn, shared.db.schema(), owner, &insert_of(run_id, new)).await?;
    outcome(shared, inserted, new).map(|_| run_id)
}

fn insert_of(run_id: RunId, new: &NewRun) -> Insert<'_> {
    Insert { run_id, kind: &new.kind, key: new.key.as_deref(), input: &new.input }
}

/// Repeats an insert whose reply was lost: it changes nothing where the first one had been committed.
async fn repeat<F>(run_id: RunId, insert: impl Fn() -> F) -> Result<Inserted>
where
    F: Future<Output = Result<Inserted>>,
{
    let mut tried = 0;
    loop {
        tried += 1;
        match insert().await {
            Err(e) if e.is_session_lost() && tried < TRIES => tokio::time::sleep(BETWEEN_TRIES).await,
            Err(e) if e.is_session_lost() || e.kind() == ErrorKind::Timeout => {
                return Err(e
                    .about_run(run_id)
                    .left(format!("run {run_id} may have been started all the same; if so, it is taken up"))
                    .todo("look for it by its id before you start another; with a key, a second start is refused"));
            }
            done => return done,
        }
    }
}

fn outcome(shared: &Shared, inserted: Inserted, new: &NewRun) -> Result<Fence> {
    match inserted {
        Inserted::Yes(fence) => Ok(fence),
        Inserted::KeyBusy(run_id) => Err(Error::new(
            ErrorKind::KeyBusy,
            format!(
                "run {run_id} of kind {:?} and key {:?} is running",
                new.kind,
                new.key.as_deref().unwrap_or_default()
            ),
        )
        .about_run(run_id)
        .left("no run was started")
        .todo("follow that run, or wait until it has ended")),
        // It began to drain, or lost its row, while the start was under way.
        Inserted::NoOwner => Err(shared.may_take_work().err().unwrap_or_else(|| runs::not_registered(&shared.pod_id))),
    }
}

fn check(new: &NewRun) -> Result<()> {
    let fault = if new.kind.is_empty() || new.kind.len() > 128 {
        Some(format!("its kind has {} bytes, and must have 1 to 128", new.kind.len()))
    } else if new.key.as_ref().is_some_and(|k| k.is_empty() || k.len() > 1024) {
        Some("its key must have 1 to 1024 bytes".to_owned())
    } else if new.kind.contains('\0') || new.key.as_ref().is_some_and(|k| k.contains('\0')) || has_nul(&new.input) {
        Some("PostgreSQL cannot store the character U+0000".to_owned())
    } else {
        None
    };
    match fault {
        None => Ok(()),
        Some(fault) => Err(Error::new(ErrorKind::InvalidInput, format!("the run cannot be started: {fault}"))
            .left("no run was started")
            .todo("correct it")),
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn no_handler(shared: &Shared, kind: &str) -> Error {
    let mut known: Vec<_> = shared.handlers.keys().map(String::as_str).collect();
    known.sort_unstable();
    Error::new(
        ErrorKind::NoHandler,
        format!("pod {} has no handler for kind {kind:?}; it has {known:?}", shared.pod_id),
    )
    .left("no run was started")
    .todo("register a handler for it, or submit it unowned for a pod that has one")
}

fn full(shared: &Shared) -> Error {
    Error::new(
        ErrorKind::AtCapacity,
        format!("pod {} runs {} runs, as many as it may", shared.pod_id, shared.settings.capacity),
    )
    .left("no run was started")
    .todo("retry later or on another pod, raise capacity, or submit it unowned")
}
