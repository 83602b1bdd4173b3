//! Probes peers, waits for a peer's locks, and buries dead pods (L2, L3).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::candidates::{CANDIDATES, Wanted};
use super::evictions;
use super::locks::{Keys, millis};
use super::pods::{interval, warm_up_log};
use crate::error::{Error, ErrorKind, Result, chain};
use crate::id::{Incarnation, LockKey, PodId};
use crate::pg::reply::Reply;
use crate::pg::session::{Backend, Session};
use crate::pg::statement::sql;
use crate::pg::txn::{Call, Param, Prepared, Txn, commit_patience};
use crate::protocol::ending;
use crate::protocol::patience::Stated;
use crate::protocol::portions::Portion;
use crate::protocol::verdict::PeerProbe;
use crate::protocol::wait::Wait;

/// The result of a probe of the roster, or of one portion of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RosterProbe {
    pub(crate) peers: Vec<PeerRow>,
    /// The peers whose locks could not be probed.
    pub(crate) unknown: BTreeSet<Incarnation>,
    /// Our own row. `None` if it is not in the roster.
    pub(crate) own: Option<OwnRow>,
    /// Peers whose `pod_id` is not a valid name, and why. Such rows were made by hand, and are passed over.
    pub(crate) misnamed: Vec<(Incarnation, String)>,
    /// The lock keys of the misnamed rows. They count towards the length of a portion, like all others.
    misnamed_keys: Vec<LockKey>,
    /// The last event's position when the probe began. As long as it does not change, the roster does not change.
    pub(crate) version: Option<i64>,
}

impl RosterProbe {
    /// Adds the next portion.
    pub(crate) fn extend(&mut self, part: Self) {
        self.peers.extend(part.peers);
        self.unknown.extend(part.unknown);
        self.misnamed.extend(part.misnamed);
        self.misnamed_keys.extend(part.misnamed_keys);
        self.own = self.own.take().or(part.own);
        self.version = self.version.or(part.version);
    }

    /// The lock keys of all rows that were read, in the order of the rows.
    pub(crate) fn keys(&self) -> Vec<i64> {
        let own = self.own.iter().map(|o| o.lock);
        let mut keys: Vec<_> = self.peers.iter().map(|p| p.keys.lock).chain(own).collect();
        keys.extend(&self.misnamed_keys);
        keys.sort_unstable();
        keys.into_iter().map(LockKey::get).collect()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct PeerRow {
    pub(crate) probe: PeerProbe,
    pub(crate) keys: Keys,
    /// Why the pod was evicted, if it was.
    pub(crate) evicted: Option<ending::Reason>,
    /// The time since the pod's last beat, by the server's clock. It is for people: nothing is decided on it.
    pub(crate) beat_age: Option<Duration>,
    /// The least time between two beats of the pod, if its row says so. A pod without progress does not beat.
    pub(crate) beat_interval: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(crate) struct OwnRow {
    pub(crate) lock: LockKey,
    /// Who asked the pod to drain.
    pub(crate) drain_requested: Option<String>,
    /// Who cordoned the pod.
    pub(crate) cordoned_by: Option<String>,
}

/// The end of one slice of the watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slice {
    Held,
    LivenessFree,
    BothFree,
}

/// Our own identity and backend. A transaction that acts on other pods proves them first (L2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proof {
    pub(crate) incarnation: Incarnation,
    pub(crate) lock: LockKey,
    pub(crate) liveness: Backend,
}

const PROBE: Prepared = Prepared {
    template: sql!("probe_portion", "roster_rows", "probed"),
    types: &[Type::UUID, Type::INT8, Type::INT8, Type::INT8, Type::BOOL, Type::BOOL],
};
const PROBE_AGAIN: &str = sql!("probe_again", "roster_rows", "open_session_is_free", "probed");

/// Probes or reads one portion of the roster, in a statement of its own. Keeps no lock, and hides no free lock from
/// pods that probe at the same time.
pub(crate) async fn probe(session: &Session, own: Incarnation, portion: Portion) -> Result<RosterProbe> {
    let most = i64::try_from(portion.most).unwrap_or(i64::MAX);
    let own_id = own.as_uuid();
    let params = portion_params(&own_id, &portion, &most, &true);
    let rows = session.query("probing the roster", PROBE.template, &params).await?;
    read_probe(own, &rows, portion.probe)
}

/// The same as [`probe`], as the first statement of a transaction. The transaction keeps the locks that it got.
pub(crate) async fn begin_probe(
    session: &mut Session,
    own: Incarnation,
    portion: Portion,
) -> Result<(Txn<'_>, RosterProbe)> {
    let most = i64::try_from(portion.most).unwrap_or(i64::MAX);
    let own_id = own.as_uuid();
    let params = portion_params(&own_id, &portion, &most, &false);
    let (txn, rows) = session.begin_with("probing the roster", PROBE.template, &params).await?;
    let probe = read_probe(own, &rows, portion.probe)?;
    Ok((txn, probe))
}

/// Probes the peers with these lock keys again, as the first statement of a transaction. The transaction keeps the
/// locks that it got.
pub(crate) async fn begin_probing_again<'a>(
    session: &'a mut Session,
    own: Incarnation,
    keys: &[i64],
) -> Result<(Txn<'a>, RosterProbe)> {
    let params: [Param<'_>; 2] = [(&own.as_uuid(), Type::UUID), (&keys, Type::INT8_ARRAY)];
    let (txn, rows) = session.begin_with("probing the dead again", PROBE_AGAIN, &params).await?;
    let probe = read_probe(own, &rows, true)?;
    Ok((txn, probe))
}

fn portion_params<'a>(own: &'a Uuid, portion: &'a Portion, most: &'a i64, share: &'a bool) -> [Param<'a>; 6] {
    [
        (own, Type::UUID),
        (&portion.from, Type::INT8),
        (&portion.upto, Type::INT8),
        (most, Type::INT8),
        (&portion.probe, Type::BOOL),
        (share, Type::BOOL),
    ]
}

/// Whether the server's lock table was full. Then nothing was probed (L10).
pub(crate) fn met_a_full_table(error: &Error) -> bool {
    error.sqlstate() == Some("53200")
}

fn read_probe(own: Incarnation, rows: &[tokio_postgres::Row], probed: bool) -> Result<RosterProbe> {
    let mut probe = RosterProbe::default();
    for row in rows {
        probe.version = Some(row.at("version")?);
        let incarnation = Incarnation::from(row.at::<Uuid>("incarnation")?);
        let keys = Keys { lock: row.at::<i64>("lock_key")?.into(), witness: row.at::<i64>("witness_key")?.into() };
        if incarnation == own {
            let (drain_requested, cordoned_by) = (row.at("drain_requested")?, row.at("cordoned_by")?);
            probe.own = Some(OwnRow { lock: keys.lock, drain_requested, cordoned_by });
            continue;
        }
        // One bad row must not hide the others.
        let pod_id = match row.try_get::<_, String>("pod_id").map_err(|e| chain(&e)).and_then(name) {
            Ok(pod_id) => pod_id,
            Err(why) => {
                probe.misnamed.push((incarnation, why));
                probe.misnamed_keys.push(keys.lock);
                continue;
            }
        };
        if !probed {
            probe.unknown.insert(incarnation);
        }
        let evicted = evictions::mark(row.at("evicted")?);
        let peer = PeerProbe {
            pod_id,
            incarnation,
            session: row.at("session")?,
            draining: row.at("draining")?,
            stopped: row.at("stopped")?,
            liveness_free: row.at("liveness_free")?,
            witness_free: row.at("witness_free")?,
            stated: Stated::of_row(row.at("lease_ms")?, row.at("self_fence_ms")?),
        };
        let beat_age = row.at::<Option<f64>>("beat_age_s")?.and_then(|s| Duration::try_from_secs_f64(s).ok());
        let beat_interval = interval(row.at("beat_ms")?);
        probe.peers.push(PeerRow { probe: peer, keys, evicted, beat_age, beat_interval });
    }
    Ok(probe)
}

/// Records the waits that no pod has recorded yet, and returns how many they are. `None`: another transaction has
/// locked the log.
pub(crate) async fn note_waits(session: &Session, waits: &[Wait], by: &PodId) -> Result<Option<i32>> {
    const SQL: &str = "SELECT @.studio_note_waits($1::jsonb, $2::text) AS noted";
    let params: [Param<'_>; 2] = [(&json!(waits), Type::JSONB), (&by.as_str(), Type::TEXT)];
    session.query_one("recording a wait", SQL, &params).await?.at("noted")
}

fn name(name: String) -> Result<PodId, String> {
    PodId::new(name.clone()).map_err(|e| format!("{name:?}: {e}"))
}

const WATCH: &str = sql!("watch_peer");

/// Waits one slice for a peer's locks, and keeps none. Also returns the roster's version, as in [`RosterProbe`].
///
/// `tell`: whether every pod is notified if a lock came free, by the same statement.
pub(crate) async fn watch_slice(
    session: &Session,
    keys: Keys,
    slice: Duration,
    witness_wait: Duration,
    tell: bool,
) -> Result<(Slice, i64)> {
    // A notification makes the commit wait for other commits.
    let limit = slice + witness_wait + commit_patience(session.limit());
    let params: [Param<'_>; 5] = [
        (&keys.lock.get(), Type::INT8),
        (&keys.witness.get(), Type::INT8),
        (&millis(slice), Type::INT4),
        (&millis(witness_wait), Type::INT4),
        (&tell, Type::BOOL),
    ];
    let rows = session.query_limited("watching the successor", WATCH, &params, limit).await?;
    let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Database, "watching the successor: no row came"))?;
    let slice = match row.at::<&str>("answer")? {
        "both" => Slice::BothFree,
        "liveness" => Slice::LivenessFree,
        "held" => Slice::Held,
        // L10: an answer that this version does not know proves nothing.
        other => {
            return Err(Error::new(ErrorKind::Database, format!("watching the successor: unknown answer {other:?}"))
                .help(
                    "see whether a newer version has changed studio_watch; deaths are found by the sweep meanwhile",
                ));
        }
    };
    Ok((slice, row.at("roster_version")?))
}

/// A burial that was decided on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Burial<'a> {
    pub(crate) pod_id: &'a PodId,
    pub(crate) incarnation: Incarnation,
    /// The pod's session as the probe read it. A row with another session is not deleted.
    pub(crate) session: i64,
    pub(crate) draining: bool,
    pub(crate) evicted: Option<&'static str>,
    pub(crate) reason: &'static str,
    /// The cause that the burier saw. A cause that the pod itself recorded takes precedence.
    pub(crate) cause: Option<&'static str>,
    /// The detail of the event in the event log.
    pub(crate) detail: Value,
}

/// The result of burials.
#[derive(Clone, Debug)]
pub(crate) struct Buried {
    /// L2: whether we could prove that we live. Without the proof nobody was buried.
    pub(crate) proved: bool,
    /// The pods whose rows had not changed since the probe, and the recorded cause of each.
    pub(crate) gone: BTreeMap<Incarnation, Option<String>>,
}

const BURY: &str = sql!("bury", "advisory_lock", "lock_key", "open_session_is_free");

/// L3: deletes the rows of the dead pods and records their ends, while this transaction holds their locks. Then
/// commits and sends one more statement, which reads what holds after the commit. All of this is one round trip. The
/// burial is a separate statement after the probe that took the locks, so its snapshot is younger than the locks.
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
    let mut gone = BTreeMap::new();
    for row in &rows {
        if let Some(incarnation) = row.at::<Option<Uuid>>("incarnation")? {
            gone.insert(Incarnation::from(incarnation), row.at("cause")?);
        }
    }
    let proved = rows.first().map(|row| row.at("given")).transpose()?.unwrap_or(false);
    Ok((Buried { proved, gone }, then))
}

/// Prepares and plans the burial on a session that may bury, by burying nobody. Its first burial is then as fast as
/// later ones.
pub(crate) async fn warm_up(session: &mut Session) -> Result<()> {
    const BURY_TYPES: &[Type] = &[Type::UUID, Type::INT8, Type::INT4, Type::TIMESTAMPTZ, Type::JSONB, Type::TEXT];
    const STATEMENTS: [Prepared; 4] = [
        PROBE,
        Prepared { template: WATCH, types: &[Type::INT8, Type::INT8, Type::INT4, Type::INT4, Type::BOOL] },
        Prepared { template: BURY, types: BURY_TYPES },
        CANDIDATES,
    ];
    let step = "preparing for burials";
    session.prepare(step, &STATEMENTS).await?;
    if let Err(e) = session.execute_batch(step, &warm_up_log(session.schema())).await {
        session.execute_batch(step, "ROLLBACK").await?;
        return Err(e);
    }
    let (nobody, backend) = (Incarnation::from(Uuid::nil()), session.backend());
    let proof = Proof { incarnation: nobody, lock: LockKey::from(0), liveness: backend };
    let nothing = Wanted::new(nobody, Vec::new(), 0, &[], None, true, false);
    let by = PodId::new("nobody")?;
    let txn = session.begin("warming up a burial").await?;
    commit_burials(txn, &proof, &[], &by, (CANDIDATES.template, &nothing.params())).await.map(drop)
}
