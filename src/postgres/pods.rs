//! The roster, the locks, and the burial.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::pool::Database;
use super::session::{Backend, Call, Param, Prepared, Session, Txn};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, LockKey, PodId};
use crate::protocol::ending;
use crate::protocol::stall;
use crate::protocol::verdict::PeerLook;

/// A pod's two keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keys {
    pub(crate) lock: LockKey,
    pub(crate) witness: LockKey,
}

/// Who holds a key, as far as our role may see it.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) pid: i32,
    pub(crate) address: Option<IpAddr>,
    pub(crate) age: Option<Duration>,
    /// The pod whose row bears this key.
    pub(crate) registered: Option<String>,
}

/// One look at the whole roster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Look {
    pub(crate) peers: Vec<PeerRow>,
    /// Our own row; `None` if it is not in the roster.
    pub(crate) own: Option<OwnRow>,
    /// The last event's position: an unchanged one means an unchanged roster.
    pub(crate) version: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct PeerRow {
    pub(crate) look: PeerLook,
    pub(crate) keys: Keys,
    /// Why it was put out, if it was.
    pub(crate) put_out: Option<ending::Reason>,
}

#[derive(Clone, Debug)]
pub(crate) struct OwnRow {
    pub(crate) drain_requested: Option<String>,
}

/// What one slice of the watch ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slice {
    Held,
    LivenessFree,
    BothFree,
}

/// Who we are when we act on others (L2): proved in the same transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proof {
    pub(crate) incarnation: Incarnation,
    pub(crate) lock: LockKey,
    pub(crate) liveness: Backend,
}

/// What a pod registers.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    pub(crate) pod_id: PodId,
    pub(crate) incarnation: Incarnation,
    pub(crate) keys: Keys,
    pub(crate) version: String,
    pub(crate) labels: Value,
    pub(crate) liveness: Backend,
    pub(crate) control: Option<Backend>,
    /// An incarnation of ours that gave itself up (L7): its end is a detach, not a crash.
    pub(crate) given_up: Option<Incarnation>,
}

pub(crate) async fn keys(session: &Session, pod: &PodId) -> Result<Keys> {
    const SQL: &str = "SELECT @.studio_lock_key($1), @.studio_witness_key($1)";
    let row = session.query_one("reading the pod's lock keys", SQL, &[(&pod.as_str(), Type::TEXT)]).await?;
    Ok(Keys { lock: row.get::<_, i64>(0).into(), witness: row.get::<_, i64>(1).into() })
}

/// Waits at most `slice` for a session lock. The wait is a real one: a try would lose to queued watchers.
pub(crate) async fn lock(session: &Session, key: LockKey, slice: Duration) -> Result<bool> {
    const SQL: &str = "SELECT @.studio_lock($1, $2)";
    let params: [Param<'_>; 2] = [(&key.get(), Type::INT8), (&millis(slice), Type::INT4)];
    Ok(session.query_one("waiting for the pod's lock", SQL, &params).await?.get(0))
}

/// Who holds `key` now.
pub(crate) async fn holder(session: &Session, key: LockKey) -> Result<Option<Holder>> {
    const SQL: &str = "SELECT l.pid, pg_catalog.host(a.client_addr), \
         EXTRACT(EPOCH FROM pg_catalog.clock_timestamp() - a.backend_start)::float8, \
         (SELECT p.pod_id FROM @.studio_pods p WHERE p.lock_key = $1 OR p.witness_key = $1) \
         FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
         WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock' \
           AND ((l.classid::bigint << 32) | l.objid::bigint) = $1 \
           AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())";
    let rows = session.query("looking for the lock's holder", SQL, &[(&key.get(), Type::INT8)]).await?;
    Ok(rows.first().map(|row| Holder {
        pid: row.get(0),
        address: row.get::<_, Option<String>>(1).and_then(|a| a.parse().ok()),
        age: row.get::<_, Option<f64>>(2).and_then(|s| Duration::try_from_secs_f64(s).ok()),
        registered: row.get(3),
    }))
}

/// The canary: tries to take, from this session, a key that another session of ours holds. True if the server let it,
/// which means that its session locks do not protect anything; the lock is then given back.
pub(crate) async fn lock_is_fake(session: &Session, key: LockKey) -> Result<bool> {
    const SQL: &str = "SELECT CASE WHEN pg_catalog.pg_try_advisory_lock($1) \
         THEN pg_catalog.pg_advisory_unlock($1) ELSE false END";
    Ok(session.query_one("checking that the lock is real", SQL, &[(&key.get(), Type::INT8)]).await?.get(0))
}

/// The pid that answers on this session now. It never changes, unless something pools in between.
pub(crate) async fn ping(session: &Session, limit: Duration) -> Result<i32> {
    const SQL: &str = "SELECT pg_catalog.pg_backend_pid()";
    let rows = session.query_limited("ping", SQL, &[], limit).await?;
    rows.first().map(|row| row.get(0)).ok_or_else(|| Error::new(ErrorKind::Database, "ping: the server sent no row"))
}

/// [`ping`] inside a transaction, which keeps a pooler's backend busy.
pub(crate) async fn pid_in_txn(txn: &Txn<'_>) -> Result<i32> {
    const SQL: &str = "SELECT pg_catalog.pg_backend_pid()";
    Ok(txn.query_one("checking for a pooler", SQL, &[]).await?.get(0))
}

/// [`ping`], and whether this backend still holds `key` in `pg_locks`.
pub(crate) async fn ping_and_check(session: &Session, key: LockKey, limit: Duration) -> Result<(i32, bool)> {
    const SQL: &str = "SELECT pg_catalog.pg_backend_pid(), @.studio_holds($1, pg_catalog.pg_backend_pid())";
    let rows = session.query_limited("ping", SQL, &[(&key.get(), Type::INT8)], limit).await?;
    rows.first()
        .map(|row| (row.get(0), row.get(1)))
        .ok_or_else(|| Error::new(ErrorKind::Database, "ping: the server sent no row"))
}

/// Ends backends that were ours and that the server may still have: same role, pid and start. Returns how many it had.
///
/// And still with our `key`: a session pooler may have handed the backend on to somebody else, even to ourselves.
pub(crate) async fn end_own_backends(session: &Session, key: LockKey, backends: &[Backend]) -> Result<usize> {
    const SQL: &str = "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a \
         WHERE a.pid = $1 AND a.backend_start = $2 AND a.usename = current_user AND a.pid <> pg_catalog.pg_backend_pid() \
           AND EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.objsubid = 1 \
             AND ((l.classid::bigint << 32) | l.objid::bigint) = $3 \
             AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()))";
    let mut ended = 0;
    for backend in backends {
        let params: [Param<'_>; 3] =
            [(&backend.pid, Type::INT4), (&backend.started, Type::TIMESTAMPTZ), (&key.get(), Type::INT8)];
        ended += session.query("ending our own former backend", SQL, &params).await?.len();
    }
    Ok(ended)
}

/// Registers a new incarnation (L1: on the session that holds the lock, and only while it does). A former incarnation
/// of the name is ended by it. Returns the incarnation that was replaced.
pub(crate) async fn register(session: &mut Session, new: &Registration) -> Result<Option<Incarnation>> {
    const PREVIOUS: &str = "SELECT incarnation, state = 'draining', evicted \
         FROM @.studio_pods WHERE pod_id = $1 FOR UPDATE";
    const END: &str = "UPDATE @.studio_pod_sessions SET ended_at = pg_catalog.clock_timestamp(), reason = $2 \
         WHERE incarnation = $1 AND ended_at IS NULL";
    const UPSERT: &str = "INSERT INTO @.studio_pods AS p (pod_id, version, labels, event_index, incarnation, lock_key, \
           witness_key, liveness_pid, liveness_started, control_pid, control_started) \
         SELECT $1, $2, $3, pg_catalog.nextval('@.studio_beat'::pg_catalog.regclass), $4, $5, $6, $7, $8, $9, $10 \
          WHERE @.studio_holds($5, $7) AND $7 = pg_catalog.pg_backend_pid() \
         ON CONFLICT (pod_id) DO UPDATE SET state = 'active', started_at = pg_catalog.now(), version = EXCLUDED.version, \
           labels = EXCLUDED.labels, event_index = EXCLUDED.event_index, beat_at = pg_catalog.now(), \
           drain_requested = CASE WHEN p.incarnation = $11 THEN p.drain_requested END, incarnation = EXCLUDED.incarnation, session = 1, evicted = NULL, lock_key = EXCLUDED.lock_key, \
           witness_key = EXCLUDED.witness_key, liveness_pid = EXCLUDED.liveness_pid, \
           liveness_started = EXCLUDED.liveness_started, control_pid = EXCLUDED.control_pid, \
           control_started = EXCLUDED.control_started \
         RETURNING p.pod_id";
    const BEGAN: &str = "INSERT INTO @.studio_pod_sessions (incarnation, pod_id) VALUES ($1, $2)";
    let incarnation = new.incarnation.as_uuid();
    let pod = new.pod_id.as_str();
    let txn = session.begin("registering").await?;
    let former = txn.query("registering", PREVIOUS, &[(&pod, Type::TEXT)]).await?;
    let former =
        former.first().map(|row| (row.get::<_, Uuid>(0), row.get::<_, bool>(1), row.get::<_, Option<String>>(2)));
    let mut detail = json!({ "version": new.version, "labels": new.labels });
    if let Some((replaced, draining, put_out)) = &former {
        let (replaced, put_out) = (*replaced, put_out.as_deref().map(ending::Reason::of_eviction));
        let gave_up = new.given_up.is_some_and(|i| i.as_uuid() == replaced);
        let reason = ending::replaced(*draining, gave_up, put_out).as_str();
        txn.query("registering", END, &[(&replaced, Type::UUID), (&reason, Type::TEXT)]).await?;
        detail["replaced"] = json!(replaced);
        detail["reason"] = json!(reason);
    }
    let control_pid = new.control.map(|b| b.pid);
    let control_started = new.control.map(|b| b.started);
    let given_up = new.given_up.map(|i| i.as_uuid());
    let params: [Param<'_>; 11] = [
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
    ];
    let upserted = txn.query("registering", UPSERT, &params).await.map_err(|e| collision(e, &new.pod_id))?;
    if upserted.is_empty() {
        return Err(Error::new(
            ErrorKind::PooledLock,
            format!("pod {pod}: this session does not hold the lock that it took"),
        )
        .left("nothing was registered")
        .todo("connect to PostgreSQL directly, or through a pooler in session mode"));
    }
    txn.query("registering", BEGAN, &[(&incarnation, Type::UUID), (&pod, Type::TEXT)]).await?;
    let joined = Event { kind: "joined", pod: &new.pod_id, incarnation: new.incarnation, by: &new.pod_id, detail };
    commit_with_events(txn, "registering", &[joined]).await?;
    Ok(former.map(|(replaced, ..)| replaced.into()))
}

fn collision(error: Error, pod: &PodId) -> Error {
    if error.sqlstate() != Some("23505") {
        return error;
    }
    Error::new(ErrorKind::KeyCollision, format!("pod {pod}: another pod's name has the same lock key"))
        .left("nothing was registered")
        .todo("give one of them another name; SELECT pod_id, lock_key FROM studio_pods shows which")
        .caused_by(error)
}

/// What a pod finds that holds its lock again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Returned {
    /// Its row, which now names this session, by its number.
    Here(i64),
    /// It was buried.
    Gone,
    /// It was put out, because it got nowhere or because an operator said so; and buried, or it will be replaced.
    PutOut,
}

/// Records that this incarnation holds its lock again, on a new session.
pub(crate) async fn come_back(
    session: &mut Session,
    pod: &PodId,
    incarnation: Incarnation,
    cause: &str,
    away: Duration,
) -> Result<Returned> {
    const SQL: &str = "UPDATE @.studio_pods SET session = session + 1, liveness_pid = $3, liveness_started = $4 \
         WHERE pod_id = $1 AND incarnation = $2 AND evicted IS NULL AND @.studio_holds(lock_key, $3) RETURNING session";
    const PUT_OUT: &str = "SELECT EXISTS (SELECT FROM @.studio_pods WHERE incarnation = $1 AND evicted IS NOT NULL) \
         OR EXISTS (SELECT FROM @.studio_pod_sessions WHERE incarnation = $1 AND reason IN ('stalled', 'evicted'))";
    let liveness = session.backend();
    let step = "coming back";
    let txn = session.begin(step).await?;
    let params: [Param<'_>; 4] = [
        (&pod.as_str(), Type::TEXT),
        (&incarnation.as_uuid(), Type::UUID),
        (&liveness.pid, Type::INT4),
        (&liveness.started, Type::TIMESTAMPTZ),
    ];
    let rows = txn.query(step, SQL, &params).await?;
    let Some(session_number) = rows.first().map(|row| row.get::<_, i64>(0)) else {
        let put_out = txn.query_one(step, PUT_OUT, &[(&incarnation.as_uuid(), Type::UUID)]).await?.get(0);
        txn.rollback(step).await?;
        return Ok(if put_out { Returned::PutOut } else { Returned::Gone });
    };
    let away_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX);
    let event = |kind, detail| Event { kind, pod, incarnation, by: pod, detail };
    let events = [
        event("detached", json!({ "cause": cause })),
        event("returned", json!({ "session": session_number, "away_ms": away_ms })),
    ];
    commit_with_events(txn, step, &events).await?;
    Ok(Returned::Here(session_number))
}

/// Records the control session's backend in the pod's row.
pub(crate) async fn set_control(session: &Session, incarnation: Incarnation) -> Result<()> {
    const SQL: &str = "UPDATE @.studio_pods SET control_pid = $2, control_started = $3 WHERE incarnation = $1";
    let backend = session.backend();
    let params: [Param<'_>; 3] =
        [(&incarnation.as_uuid(), Type::UUID), (&backend.pid, Type::INT4), (&backend.started, Type::TIMESTAMPTZ)];
    session.query("recording the control session", SQL, &params).await.map(drop)
}

/// LISTENs on the schema's channel.
pub(crate) async fn listen(session: &Session) -> Result<()> {
    let channel = super::schema::quote_identifier(&session.schema().channel());
    session.execute_batch("listening", &format!("LISTEN {channel}")).await
}

/// A witness is tried only where the liveness lock was free: it says nothing otherwise, and of two who look at once the
/// same one gets both.
const LOOK: &str = "WITH roster AS MATERIALIZED ( \
       SELECT pod_id, incarnation, session, state, lock_key, witness_key, drain_requested, evicted, \
         CASE WHEN incarnation = $1 THEN false ELSE pg_catalog.pg_try_advisory_xact_lock(lock_key) END AS free \
       FROM @.studio_pods \
     ), newest AS MATERIALIZED ( \
       SELECT COALESCE(pg_catalog.max(idx), 0) AS idx FROM @.studio_pod_events \
     ) \
     SELECT r.pod_id, r.incarnation, r.session, r.state = 'draining', r.lock_key, r.witness_key, r.drain_requested, \
       r.free, CASE WHEN r.free THEN pg_catalog.pg_try_advisory_xact_lock(r.witness_key) ELSE false END, \
       n.idx, r.evicted \
     FROM roster r CROSS JOIN newest n";

/// Probes all peers in one statement of its own; keeps no lock.
pub(crate) async fn look(session: &Session, own: Incarnation) -> Result<Look> {
    let rows = session.query("looking at the peers", LOOK, &[(&own.as_uuid(), Type::UUID)]).await?;
    read_look(own, &rows)
}

/// [`look`] in a transaction that begins with it and keeps the locks that it got.
pub(crate) async fn begin_look<'a>(session: &'a mut Session, own: Incarnation) -> Result<(Txn<'a>, Look)> {
    let (txn, rows) = session.begin_with("looking at the peers", LOOK, &[(&own.as_uuid(), Type::UUID)]).await?;
    let look = read_look(own, &rows)?;
    Ok((txn, look))
}

fn read_look(own: Incarnation, rows: &[tokio_postgres::Row]) -> Result<Look> {
    let mut look = Look::default();
    for row in rows {
        look.version = row.get(9);
        let incarnation = Incarnation::from(row.get::<_, Uuid>(1));
        if incarnation == own {
            look.own = Some(OwnRow { drain_requested: row.get(6) });
            continue;
        }
        let keys = Keys { lock: row.get::<_, i64>(4).into(), witness: row.get::<_, i64>(5).into() };
        let put_out = row.get::<_, Option<&str>>(10).map(ending::Reason::of_eviction);
        let peer = PeerLook {
            pod_id: PodId::new(row.get::<_, String>(0))?,
            incarnation,
            session: row.get(2),
            draining: row.get(3),
            liveness_free: row.get(7),
            witness_free: row.get(8),
        };
        look.peers.push(PeerRow { look: peer, keys, put_out });
    }
    Ok(look)
}

const WATCH: &str = "SELECT w.answer, w.roster_version FROM @.studio_watch($1, $2, $3, $4) AS w";

/// Waits one slice for a peer's locks. Keeps none. Also the roster's version, as in [`Look`].
pub(crate) async fn watch_slice(
    session: &Session,
    keys: Keys,
    slice: Duration,
    witness_wait: Duration,
    limit: Duration,
) -> Result<(Slice, i64)> {
    let params: [Param<'_>; 4] = [
        (&keys.lock.get(), Type::INT8),
        (&keys.witness.get(), Type::INT8),
        (&millis(slice), Type::INT4),
        (&millis(witness_wait), Type::INT4),
    ];
    let rows = session.query_limited("watching the successor", WATCH, &params, limit).await?;
    let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Database, "watching the successor: no row came"))?;
    let slice = match row.get::<_, &str>(0) {
        "both" => Slice::BothFree,
        "liveness" => Slice::LivenessFree,
        _ => Slice::Held,
    };
    Ok((slice, row.get(1)))
}

/// A burial that was decided on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Burial<'a> {
    pub(crate) pod_id: &'a PodId,
    pub(crate) incarnation: Incarnation,
    /// As looked at; a row that has changed since is not deleted.
    pub(crate) session: i64,
    pub(crate) draining: bool,
    pub(crate) evicted: Option<&'static str>,
    pub(crate) reason: &'static str,
    /// For the event log.
    pub(crate) detail: Value,
}

/// What became of the burials.
#[derive(Clone, Debug)]
pub(crate) struct Buried {
    /// L2: whether we could prove that we live. Without it nobody was buried.
    pub(crate) proved: bool,
    /// Those whose rows were still as they were looked at.
    pub(crate) gone: Vec<Incarnation>,
}

/// L2, as part of the statement that deletes: our own liveness backend holds our own key, and our own incarnation is in
/// the roster, now. What `studio_holds` says is written out here: a call of it is planned anew each time.
const BURY: &str = "WITH proof AS MATERIALIZED ( \
       SELECT EXISTS (SELECT FROM @.studio_pods p WHERE p.incarnation = $1 AND p.liveness_pid = $3 \
           AND p.liveness_started = $4) \
         AND EXISTS (SELECT FROM pg_catalog.pg_locks l \
           WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock' AND l.pid = $3 \
             AND ((l.classid::bigint << 32) | l.objid::bigint) = $2 \
             AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())) \
         AND EXISTS (SELECT FROM pg_catalog.pg_stat_activity a WHERE a.pid = $3 AND a.backend_start = $4) AS given \
     ), dead AS MATERIALIZED ( \
       SELECT d.pod_id, d.incarnation, d.session, d.draining, d.evicted, d.reason, d.detail \
         FROM pg_catalog.jsonb_to_recordset($5) AS d(pod_id pg_catalog.text, incarnation pg_catalog.uuid, \
           session pg_catalog.int8, draining pg_catalog.bool, evicted pg_catalog.text, reason pg_catalog.text, detail pg_catalog.jsonb) \
     ), gone AS ( \
       DELETE FROM @.studio_pods p USING dead d, proof \
        WHERE proof.given AND p.pod_id = d.pod_id AND p.incarnation = d.incarnation AND p.session = d.session \
          AND (p.state = 'draining') = d.draining AND p.evicted IS NOT DISTINCT FROM d.evicted \
       RETURNING p.pod_id, p.incarnation, d.reason, d.detail \
     ), ended AS ( \
       UPDATE @.studio_pod_sessions s SET ended_at = pg_catalog.clock_timestamp(), reason = gone.reason, buried_by = $6 \
         FROM gone WHERE s.incarnation = gone.incarnation AND s.ended_at IS NULL RETURNING s.incarnation \
     ), first AS MATERIALIZED ( \
       SELECT pg_catalog.count(*) AS rows FROM ended \
     ), logged AS MATERIALIZED ( \
       SELECT g.incarnation, @.studio_append_event('buried', g.pod_id, g.incarnation, $6, g.detail) AS idx \
         FROM (SELECT pod_id, incarnation, detail FROM gone ORDER BY pod_id) g CROSS JOIN first WHERE first.rows >= 0 \
     ) SELECT proof.given, logged.incarnation FROM proof LEFT JOIN logged ON logged.idx IS NOT NULL";

/// L3: deletes the rows of the dead and records their ends, while this transaction holds their locks, and commits; all
/// in one round trip, with a statement behind it that reads what then holds. A statement of its own after the look that
/// took the locks: its snapshot is younger than they are.
pub(crate) async fn commit_burials(
    txn: Txn<'_>,
    proof: &Proof,
    dead: &[Burial<'_>],
    by: &PodId,
    then: Call<'_>,
) -> Result<(Buried, Option<Vec<tokio_postgres::Row>>)> {
    let params: [Param<'_>; 6] = [
        (&proof.incarnation.as_uuid(), Type::UUID),
        (&proof.lock.get(), Type::INT8),
        (&proof.liveness.pid, Type::INT4),
        (&proof.liveness.started, Type::TIMESTAMPTZ),
        (&json!(dead), Type::JSONB),
        (&by.as_str(), Type::TEXT),
    ];
    let (rows, then) = txn.commit_with_then("burying", (BURY, &params), then).await?;
    let gone = rows.iter().filter_map(|row| row.get::<_, Option<Uuid>>(1)).map(Incarnation::from).collect();
    Ok((Buried { proved: rows.first().is_some_and(|row| row.get(0)), gone }, then))
}

/// Has a session that may bury prepare for it, and plan it by burying nobody: its first burial is as quick as the next.
pub(crate) async fn rehearse(session: &mut Session) -> Result<()> {
    const BURY_TYPES: &[Type] = &[Type::UUID, Type::INT8, Type::INT4, Type::TIMESTAMPTZ, Type::JSONB, Type::TEXT];
    const STATEMENTS: [Prepared; 4] = [
        Prepared { template: LOOK, types: &[Type::UUID] },
        Prepared { template: WATCH, types: &[Type::INT8, Type::INT8, Type::INT4, Type::INT4] },
        Prepared { template: BURY, types: BURY_TYPES },
        super::runs::CANDIDATES,
    ];
    let step = "preparing for burials";
    session.prepare(step, &STATEMENTS).await?;
    if let Err(e) = session.execute_batch(step, &session.schema().sql(REHEARSE_LOG)).await {
        session.execute_batch(step, "ROLLBACK").await?;
        return Err(e);
    }
    let (nobody, backend) = (Incarnation::from(Uuid::nil()), session.backend());
    let proof = Proof { incarnation: nobody, lock: LockKey::from(0), liveness: backend };
    let kinds: [&str; 0] = [];
    let passed_over: [Uuid; 0] = [];
    let candidates: [Param<'_>; 4] = [
        (&nobody.as_uuid(), Type::UUID),
        (&kinds.as_slice(), Type::TEXT_ARRAY),
        (&0_i64, Type::INT8),
        (&passed_over.as_slice(), Type::UUID_ARRAY),
    ];
    let by = PodId::new("nobody")?;
    let txn = session.begin("rehearsing a burial").await?;
    commit_burials(txn, &proof, &[], &by, (super::runs::CANDIDATES.template, &candidates)).await.map(drop)
}

/// Appends to the event log and undoes it, so that the server has its function compiled and planned. That leaves a gap
/// in the log's numbers, as any transaction does that is undone. It waits for nobody.
pub(crate) const REHEARSE_LOG: &str = "BEGIN; SET LOCAL lock_timeout = '20ms'; \
     SELECT @.studio_append_event('claimed', '', pg_catalog.gen_random_uuid(), '', '{}'); ROLLBACK";

/// An entry for the event log.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Event<'a> {
    pub(crate) kind: &'static str,
    pub(crate) pod: &'a PodId,
    pub(crate) incarnation: Incarnation,
    pub(crate) by: &'a PodId,
    pub(crate) detail: Value,
}

/// Commits, appending to the event log in order and telling every pod. Appends are serialised until commit, so both go
/// to the server together: no frozen pod holds the log.
pub(crate) async fn commit_with_events(txn: Txn<'_>, step: &str, events: &[Event<'_>]) -> Result<()> {
    const SQL: &str = "SELECT @.studio_append_event(t.e->>'kind', t.e->>'pod', (t.e->>'incarnation')::pg_catalog.uuid, \
         t.e->>'by', t.e->'detail') FROM pg_catalog.jsonb_array_elements($1) WITH ORDINALITY AS t(e, n)";
    txn.commit_with(step, SQL, &[(&json!(events), Type::JSONB)]).await
}

/// Asks every pod to look at the roster now.
pub(crate) async fn ask_for_a_look(session: &Session) -> Result<()> {
    const SQL: &str = "SELECT pg_catalog.pg_notify(@.studio_channel(), '{\"ask\":\"look\"}')";
    session.query("telling the others", SQL, &[]).await.map(drop)
}

/// Writes the next event index into the pod's row.
pub(crate) async fn beat(session: &Session, incarnation: Incarnation) -> Result<()> {
    const SQL: &str = "UPDATE @.studio_pods SET event_index = pg_catalog.nextval('@.studio_beat'::pg_catalog.regclass), \
         beat_at = pg_catalog.now() WHERE incarnation = $1";
    session.query("beating", SQL, &[(&incarnation.as_uuid(), Type::UUID)]).await.map(drop)
}

/// The whole roster's event indices, our own among them, and who holds both of its locks.
pub(crate) async fn beats(session: &Session, own: Incarnation) -> Result<(Option<i64>, Vec<stall::Beat>)> {
    const SQL: &str = "WITH held AS MATERIALIZED ( \
           SELECT ((l.classid::bigint << 32) | l.objid::bigint) AS key, l.pid FROM pg_catalog.pg_locks l \
            WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock' \
              AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) \
         ) SELECT p.incarnation, p.event_index, \
             EXISTS (SELECT FROM held h WHERE h.key = p.lock_key AND h.pid = p.liveness_pid) \
             AND EXISTS (SELECT FROM held h WHERE h.key = p.witness_key AND h.pid = p.control_pid) \
           FROM @.studio_pods p";
    let rows = session.query("looking at the peers' beats", SQL, &[]).await?;
    let read = |row: &tokio_postgres::Row| stall::Beat {
        incarnation: row.get::<_, Uuid>(0).into(),
        index: row.get(1),
        attached: row.get(2),
    };
    let (own, peers): (Vec<_>, Vec<_>) = rows.iter().map(read).partition(|beat| beat.incarnation == own);
    Ok((own.first().map(|beat| beat.index), peers))
}

/// Writes down that a peer is suspected, once for each index at which it stands. False: another did, or it moved.
pub(crate) async fn suspect(session: &Session, by: &PodId, stalled: &stall::Stalled) -> Result<bool> {
    const SQL: &str = "SELECT @.studio_suspect($1, $2, $3, $4)";
    let looks = i32::try_from(stalled.looks).unwrap_or(i32::MAX);
    let params: [Param<'_>; 4] = [
        (&stalled.incarnation.as_uuid(), Type::UUID),
        (&stalled.index, Type::INT8),
        (&by.as_str(), Type::TEXT),
        (&looks, Type::INT4),
    ];
    Ok(session.query_one("suspecting a peer", SQL, &params).await?.get(0))
}

/// Puts a peer out that still stands at the index at which it was suspected: how many backends were ended.
pub(crate) async fn put_out(session: &Session, by: &PodId, stalled: &stall::Stalled) -> Result<Option<i32>> {
    const SQL: &str = "SELECT @.studio_end_backends($1, $2, 'stalled', $3)";
    let params: [Param<'_>; 3] =
        [(&stalled.incarnation.as_uuid(), Type::UUID), (&stalled.index, Type::INT8), (&by.as_str(), Type::TEXT)];
    Ok(session.query_one("putting a peer out", SQL, &params).await?.get(0))
}

const MARK_DRAINING: &str = "WITH marked AS ( \
           UPDATE @.studio_pods SET state = 'draining' WHERE incarnation = $1 AND state = 'active' \
           RETURNING pod_id, incarnation, drain_requested \
         ) SELECT @.studio_append_event('draining', pod_id, incarnation, pod_id, \
             pg_catalog.jsonb_build_object('requested_by', drain_requested)) FROM marked";

/// Marks the pod's row `draining` (L4), once. False if the row is gone or was marked before.
pub(crate) async fn mark_draining(db: &Database, incarnation: Incarnation) -> Result<bool> {
    Ok(!db.query("marking the pod as draining", MARK_DRAINING, &[&incarnation.as_uuid()]).await?.is_empty())
}

/// [`mark_draining`] on a session: for a pod that registers anew while it drains.
pub(crate) async fn mark_draining_here(session: &Session, incarnation: Incarnation) -> Result<()> {
    session.query("marking the pod as draining", MARK_DRAINING, &[(&incarnation.as_uuid(), Type::UUID)]).await.map(drop)
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX).max(1)
}
