//! Statements on the roster: register, come back, drain. And appends to the event log.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::evictions;
use super::locks::{Keys, millis};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, LockKey, PodId};
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::schema::Schema;
use crate::pg::session::{Backend, Session};
use crate::pg::statement::sql;
use crate::pg::txn::{BEGIN_IMPATIENTLY, Param, Txn};
use crate::protocol::cause::Cause;
use crate::protocol::ending::{self, Reason};
use crate::protocol::patience::Stated;

/// The data that a pod registers.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) pod_id: PodId,
    pub(crate) incarnation: Incarnation,
    pub(crate) keys: Keys,
    pub(crate) version: String,
    pub(crate) labels: Value,
    pub(crate) kinds: Vec<String>,
    pub(crate) capacity: i32,
    /// The kinds with a limit of their own, as JSON. `None`: there are none.
    pub(crate) capacity_of: Option<Value>,
    pub(crate) liveness: Backend,
    pub(crate) control: Option<Backend>,
    /// An incarnation of ours that gave itself up (L7). Its end is recorded as a detach, not as a crash.
    pub(crate) given_up: Option<Incarnation>,
    /// The cause of the end of this process's former incarnation, as far as the process knows it.
    pub(crate) former: Option<(Incarnation, Cause)>,
    /// The least time between two beats. A pod without progress does not beat.
    pub(crate) beat_interval: Duration,
    /// The incarnation that this process had before, if any.
    pub(crate) mine: Incarnation,
    /// Who had cordoned this process, as far as it knows.
    pub(crate) cordoned_by: Option<String>,
    /// The settings that other pods must know, so that they wait for as long as this pod may run on.
    pub(crate) stated: Stated,
    /// The NOTIFY channel on which only this pod listens.
    pub(crate) channel: String,
    /// The cgroup of this process, if it has one.
    pub(crate) cgroup: Option<Value>,
}

/// Milliseconds from a row. `None` if the column is NULL or has a value that no pod writes.
pub(super) fn interval(ms: Option<i32>) -> Option<Duration> {
    ms.and_then(|ms| u64::try_from(ms).ok()).filter(|ms| *ms > 0).map(Duration::from_millis)
}

/// The result of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registered {
    /// The incarnation of the same name that was replaced.
    pub(crate) replaced: Option<Incarnation>,
    /// Who cordoned the pod. `None`: it is not cordoned.
    pub(crate) cordoned_by: Option<String>,
}

/// Registers a new incarnation (L1: on the session that holds the lock, and only while it does). This ends a former
/// incarnation of the same name.
pub(crate) async fn register(session: &mut Session, new: &Registration) -> Result<Registered> {
    const FORMER: &str = sql!("read_former_row");
    const END: &str = sql!("end_replaced_session");
    const REGISTER: &str = sql!("register_pod", "holds_twice");
    const BEGIN: &str = sql!("begin_session");
    let incarnation = new.incarnation.as_uuid();
    let pod = new.pod_id.as_str();
    let txn = session.begin("registering").await?;
    let former = txn.query("registering", FORMER, &[(&pod, Type::TEXT)]).await?;
    let mut cordoned_by = new.cordoned_by.clone();
    let former = match former.first() {
        Some(row) => {
            let (incarnation, draining) = (row.at::<Uuid>("incarnation")?, row.at::<bool>("draining")?);
            // The row of this very process knows better: an operator may have written it since the process last read
            // it.
            if Incarnation::from(incarnation) == new.mine {
                cordoned_by = row.at("cordoned_by")?;
            }
            Some((incarnation, draining, row.at::<Option<String>>("evicted")?))
        }
        None => None,
    };
    let mut detail = json!({ "version": new.version, "labels": new.labels });
    if let Some((replaced, draining, evicted)) = &former {
        let (replaced, evicted) = (*replaced, evictions::mark(evicted.as_deref()));
        let gave_up = new.given_up.is_some_and(|i| i.as_uuid() == replaced);
        let reason = ending::replaced(*draining, gave_up, evicted).as_str();
        txn.query("registering", END, &[(&replaced, Type::UUID), (&reason, Type::TEXT)]).await?;
        detail["replaced"] = json!(replaced);
        detail["reason"] = json!(reason);
    }
    if let Some(by) = &cordoned_by {
        detail["cordoned_by"] = json!(by);
    }
    if let Some((of, cause)) = new.former
        && tell_cause(&txn, &new.pod_id, of, cause).await?
    {
        detail["former"] = json!(of);
        detail["cause"] = json!(cause);
    }
    let control_pid = new.control.map(|b| b.pid);
    let control_started = new.control.map(|b| b.started);
    let given_up = new.given_up.map(|i| i.as_uuid());
    let params: [Param<'_>; 19] = [
        (&pod, Type::TEXT),
        (&new.version, Type::TEXT),
        (&new.labels, Type::JSONB),
        (&incarnation, Type::UUID),
        (&new.keys.lock.get(), Type::INT8),
        (&new.keys.witness.get(), Type::INT8),
        (&new.liveness.pid, Type::INT4),
        (&new.liveness.started, Type::TIMESTAMPTZ),
        (&control_pid, Type::INT4),
        (&control_started, Type::TIMESTAMPTZ),
        (&given_up, Type::UUID),
        (&new.kinds, Type::TEXT_ARRAY),
        (&new.capacity, Type::INT4),
        (&millis(new.beat_interval), Type::INT4),
        (&millis(new.stated.lease), Type::INT4),
        (&millis(new.stated.self_fence), Type::INT4),
        (&new.channel, Type::TEXT),
        (&cordoned_by, Type::TEXT),
        (&new.capacity_of, Type::JSONB),
    ];
    let registered = txn.query("registering", REGISTER, &params).await.map_err(|e| collision(e, &new.pod_id))?;
    if registered.is_empty() {
        return Err(Error::new(
            ErrorKind::PooledLock,
            format!("pod {pod}: this session does not hold the lock that it took"),
        )
        .state("nothing was registered")
        .help("connect to PostgreSQL directly, or through a pooler in session mode"));
    }
    let params: [Param<'_>; 4] =
        [(&incarnation, Type::UUID), (&pod, Type::TEXT), (&new.labels, Type::JSONB), (&new.cgroup, Type::JSONB)];
    txn.query("registering", BEGIN, &params).await?;
    let joined = Event { kind: "joined", pod: &new.pod_id, incarnation: new.incarnation, by: &new.pod_id, detail };
    commit_with_events(txn, "registering", &[joined]).await?;
    Ok(Registered { replaced: former.map(|(replaced, ..)| replaced.into()), cordoned_by })
}

/// Records why `of`, the process's own former incarnation, ended. Returns false if nothing was recorded.
async fn tell_cause(txn: &Txn<'_>, pod: &PodId, of: Incarnation, cause: Cause) -> Result<bool> {
    const SQL: &str = sql!("note_former_cause");
    let params: [Param<'_>; 3] =
        [(&of.as_uuid(), Type::UUID), (&cause.as_str(), Type::TEXT), (&pod.as_str(), Type::TEXT)];
    Ok(!txn.query("recording the former end", SQL, &params).await?.is_empty())
}

/// Records why this incarnation is about to end, while it still holds its lock. Returns false if it was not recorded.
pub(crate) async fn note_cause(session: &Session, own: Incarnation, cause: Cause, limit: Duration) -> Result<bool> {
    const SQL: &str = "SELECT @.studio_note_cause($1::uuid, $2::text) AS noted";
    let params: [Param<'_>; 2] = [(&own.as_uuid(), Type::UUID), (&cause.as_str(), Type::TEXT)];
    let rows = session.query_limited("recording the cause of its end", SQL, &params, limit).await?;
    let Some(row) = rows.first() else { return Ok(false) };
    row.at("noted")
}

fn collision(error: Error, pod: &PodId) -> Error {
    if error.sqlstate() != Some("23505") {
        return error;
    }
    Error::new(ErrorKind::KeyCollision, format!("pod {pod}: another pod's name has the same lock key"))
        .state("nothing was registered")
        .help("give one of them another name; SELECT pod_id, lock_key FROM studio_pods shows which")
        .caused_by(error)
}

/// What a pod finds when it holds its lock again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Returned {
    /// The pod's row is there, and now names this session. The value is the session's number.
    Here(i64),
    /// The pod was buried or evicted.
    Gone,
}

/// Records that this incarnation holds its lock again, on a new session.
pub(crate) async fn come_back(
    session: &mut Session,
    pod: &PodId,
    incarnation: Incarnation,
    lock: LockKey,
    stated: Stated,
    cause: &str,
    away: Duration,
) -> Result<Returned> {
    const SQL: &str = sql!("come_back", "holds_twice");
    const FORGET_CAUSE: &str = sql!("forget_cause");
    let liveness = session.backend();
    let step = "coming back";
    let txn = session.begin(step).await?;
    let params: [Param<'_>; 7] = [
        (&pod.as_str(), Type::TEXT),
        (&incarnation.as_uuid(), Type::UUID),
        (&liveness.pid, Type::INT4),
        (&liveness.started, Type::TIMESTAMPTZ),
        (&millis(stated.lease), Type::INT4),
        (&millis(stated.self_fence), Type::INT4),
        (&lock.get(), Type::INT8),
    ];
    let rows = txn.query(step, SQL, &params).await?;
    let Some(session_number) = rows.first().map(|row| row.at::<i64>("session")).transpose()? else {
        txn.rollback(step).await?;
        return Ok(Returned::Gone);
    };
    // The pod is back, so the end that it recorded before did not happen.
    txn.query(step, FORGET_CAUSE, &[(&incarnation.as_uuid(), Type::UUID)]).await?;
    let away_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX);
    let event = |kind, detail| Event { kind, pod, incarnation, by: pod, detail };
    let events = [
        event("detached", json!({ "cause": cause })),
        event("returned", json!({ "session": session_number, "away_ms": away_ms })),
    ];
    commit_with_events(txn, step, &events).await?;
    Ok(Returned::Here(session_number))
}

/// Whether this incarnation was evicted, because it made no progress or because an operator asked for it. It may have
/// been buried since.
pub(crate) async fn was_evicted(session: &Session, incarnation: Incarnation) -> Result<bool> {
    const SQL: &str = sql!("find_own_eviction");
    let evictions: Vec<&str> = Reason::evictions().map(Reason::as_str).collect();
    let params: [Param<'_>; 2] = [(&incarnation.as_uuid(), Type::UUID), (&evictions, Type::TEXT_ARRAY)];
    let row = session.query_one("reading whether this pod was evicted", SQL, &params).await?;
    row.at("evicted")
}

/// Records the control session's backend in the pod's row.
pub(crate) async fn set_control(session: &Session, incarnation: Incarnation) -> Result<()> {
    const SQL: &str = sql!("record_control_session");
    let backend = session.backend();
    let params: [Param<'_>; 3] =
        [(&incarnation.as_uuid(), Type::UUID), (&backend.pid, Type::INT4), (&backend.started, Type::TIMESTAMPTZ)];
    session.query("recording the control session", SQL, &params).await.map(drop)
}

/// A batch that appends to the event log and rolls back, so that the server has compiled and planned its function. The
/// rollback leaves a gap in the log's numbers, as every rollback does. It waits for a lock only for 20 ms, and commits
/// nothing under that time-out.
pub(super) fn warm_up_log(schema: &Schema) -> String {
    format!("{BEGIN_IMPATIENTLY}; {}; ROLLBACK", schema.sql(sql!("append_no_event")))
}

/// An entry for the event log.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Event<'a> {
    pub(crate) kind: &'static str,
    pub(crate) pod: &'a PodId,
    pub(crate) incarnation: Incarnation,
    pub(crate) by: &'a PodId,
    pub(crate) detail: Value,
}

/// Commits with these events appended to the event log in order, and notifies every pod. Appends are serialised until
/// the commit. So the append and the commit are sent together, and a pod that freezes cannot keep the log locked.
pub(crate) async fn commit_with_events(txn: Txn<'_>, step: &str, events: &[Event<'_>]) -> Result<()> {
    const SQL: &str = sql!("append_events");
    txn.commit_with(step, SQL, &[(&json!(events), Type::JSONB)]).await
}

const MARK_DRAINING: &str = sql!("mark_draining");

/// Marks the pod's row `draining` (L4), once. Returns false if the row is gone or was marked before.
pub(crate) async fn mark_draining(db: &Database, incarnation: Incarnation) -> Result<bool> {
    Ok(!db.query("marking the pod as draining", MARK_DRAINING, &[&incarnation.as_uuid()]).await?.is_empty())
}

/// Records that the clean stop is complete. Returns false if the row is gone or is not marked as draining.
pub(crate) async fn mark_stopped(db: &Database, incarnation: Incarnation) -> Result<bool> {
    const SQL: &str = sql!("mark_stopped");
    Ok(!db.query("recording a complete stop", SQL, &[&incarnation.as_uuid()]).await?.is_empty())
}

/// The same as [`mark_draining`], on a session. For a pod that registers again while it drains.
pub(crate) async fn mark_draining_here(session: &Session, incarnation: Incarnation) -> Result<()> {
    let params: [Param<'_>; 1] = [(&incarnation.as_uuid(), Type::UUID)];
    session.query_and_tell("marking the pod as draining", MARK_DRAINING, &params).await.map(drop)
}
