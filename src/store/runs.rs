//! Statements on runs. Each write of an owner names its incarnation and its fence (L5); each condition that a plan
//! rests on is repeated in the statement that acts on it; what happened is what the rows that come back say.

use deadpool_postgres::ClientWrapper;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::crashes::crash_reasons;
use super::fences;
use super::pods::WARM_UP_LOG;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::id::{Fence, Incarnation, PodId, RunId};
use crate::output::{Columns, Output, cut_error};
use crate::pg::errors;
use crate::pg::pool::{Database, Planned};
use crate::pg::reply::Reply;
use crate::pg::schema::Schema;
use crate::pg::statement::sql;
use crate::pg::txn::{BEGIN_IMPATIENTLY, Param};
use crate::protocol::notices::{NOBODY, Told};
use crate::protocol::recover::Candidate;

/// A run that is to be inserted.
#[derive(Clone, Debug)]
pub(crate) struct Insert<'a> {
    pub(crate) run_id: RunId,
    pub(crate) kind: &'a str,
    pub(crate) key: Option<&'a str>,
    pub(crate) input: &'a Value,
    /// The highest fence that this process was ever given: an owned run's is above.
    pub(crate) floor: Fence,
}

/// How an insert ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// It is there, under this fence (0 where nobody owns it).
    Yes(Fence),
    /// A running run of this kind has the key.
    KeyBusy(RunId, Holder),
    /// The incarnation that was to own it is not in the roster, or drains.
    NoOwner,
}

/// Who has the run that has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A pod of the roster, as far as the roster knows.
    Pod,
    /// Its owner has left the roster.
    Gone,
    /// Nobody: it waits for a pod with a handler and room.
    Nobody,
}

/// A run that was claimed: all that a handler needs.
#[derive(Clone, Debug)]
pub(crate) struct Claimed {
    pub(crate) run_id: RunId,
    pub(crate) kind: String,
    pub(crate) key: Option<String>,
    pub(crate) fence: Fence,
    pub(crate) attempt: i32,
    pub(crate) input: Value,
    pub(crate) checkpoint: Option<Value>,
    /// How many chunks the stream had at the checkpoint.
    pub(crate) checkpoint_seq: i64,
    /// How many owners in a row crashed under it.
    pub(crate) crashes: u32,
}

/// A run that was quarantined where it would have been claimed.
#[derive(Clone, Debug)]
pub(crate) struct Quarantined {
    pub(crate) run_id: RunId,
    pub(crate) kind: String,
    /// Which owners died with it.
    pub(crate) error: String,
}

/// What a claim did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    pub(crate) claimed: Vec<Claimed>,
    /// Claimed as well; input and checkpoint are still to be read ([`super::payloads`]). With the bytes that they take up
    /// in the table, which may be compressed.
    pub(crate) unread: Vec<(Claimed, i64)>,
    /// Claimed as well, but nobody could begin them.
    pub(crate) unreadable: Vec<Unreadable>,
    pub(crate) quarantined: Vec<Quarantined>,
}

/// A run that was claimed and whose input or checkpoint cannot be read.
#[derive(Clone, Debug)]
pub(crate) struct Unreadable {
    pub(crate) owner: Owner,
    pub(crate) kind: String,
    pub(crate) attempt: i32,
    pub(crate) why: String,
}

/// Who writes: the owner's half of every WHERE clause.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) run_id: RunId,
    pub(crate) incarnation: Incarnation,
    pub(crate) fence: Fence,
}

/// How an owner's run ends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ending {
    Succeeded(Output),
    /// Why, and what it put out before.
    Failed(String, Output),
}

impl Ending {
    pub(crate) fn of(output: Output) -> Self {
        match output.error().map(ToOwned::to_owned) {
            None => Self::Succeeded(output),
            Some(why) => Self::Failed(why, output),
        }
    }

    pub(crate) fn output(&self) -> &Output {
        let (Self::Succeeded(output) | Self::Failed(_, output)) = self;
        output
    }

    /// The run's state from then on.
    pub(crate) fn state(&self) -> &'static str {
        match self {
            Self::Succeeded(_) => "succeeded",
            Self::Failed(..) => "failed",
        }
    }

    /// Why it failed, if it did.
    pub(crate) fn error(&self) -> Option<&str> {
        match self {
            Self::Succeeded(_) => None,
            Self::Failed(why, _) => Some(why),
        }
    }
}

/// Where a run stands, for an owner whose write found no row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) state: String,
    pub(crate) owner_pod: Option<String>,
    pub(crate) owner: Option<Incarnation>,
    pub(crate) fence: Fence,
}

/// What became of a cancellation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cancelled {
    /// The run is cancelled from now on; its owner, if it has one, has been told.
    Now,
    /// It had ended before, in this state.
    AlreadyEnded {
        /// `succeeded`, `failed`, `cancelled` or `quarantined`.
        state: String,
    },
    /// There is no such run.
    NotFound,
}

/// Two parts of WITH. `reach`: where the sequence of fences stands, and how far this statement can raise it. `above`:
/// takes the numbers up to a floor from the sequence, so that `nextval` after a join with `above` is above the floor.
///
/// `above` takes nothing if the sequence has passed the floor already, as it always has on one timeline of the
/// database. After a failover to a standby that lagged, the sequence may be behind. Neither a pod nor a run may get a
/// number twice.
///
/// The step is bounded ([`crate::protocol::fences::STEP`]). A run that needs a larger step is not in `reach`, and the
/// statement must leave it out; `studio_raise_fence` goes further. `rises` is false while the sequence hands out
/// numbers in advance (CACHE): fences could then fall.
macro_rules! above {
    ($floor:literal) => {
        concat!(
            "reach AS MATERIALIZED ( \
               SELECT COALESCE(pg_catalog.pg_sequence_last_value(q.seqrelid::pg_catalog.regclass), 0::pg_catalog.int8) AS last, \
                      COALESCE(pg_catalog.pg_sequence_last_value(q.seqrelid::pg_catalog.regclass), 0::pg_catalog.int8) \
                        OPERATOR(pg_catalog.+) 100000::pg_catalog.int8 AS most, \
                      q.seqcache OPERATOR(pg_catalog.=) 1::pg_catalog.int8 AS rises \
                 FROM pg_catalog.pg_sequence q \
                WHERE q.seqrelid OPERATOR(pg_catalog.=) '@.studio_fence'::pg_catalog.regclass::pg_catalog.oid \
             ), above AS MATERIALIZED ( \
               SELECT pg_catalog.count(pg_catalog.nextval('@.studio_fence'::pg_catalog.regclass)) AS passed \
                 FROM (SELECT pg_catalog.generate_series(1::pg_catalog.int8, LEAST(",
            $floor,
            " OPERATOR(pg_catalog.-) e.last, 100000::pg_catalog.int8)) FROM reach e) AS missing)"
        )
    };
}

/// Whether this floor is in `reach` ([`above!`]), and fences rise.
macro_rules! in_reach {
    ($floor:literal) => {
        concat!("(SELECT e.rises AND ", $floor, " OPERATOR(pg_catalog.<=) e.most FROM reach e)")
    };
}

const BUSY: &str = "SELECT r.run_id, r.owner_incarnation IS NOT NULL, \
       EXISTS (SELECT FROM @.studio_pods p WHERE p.incarnation OPERATOR(pg_catalog.=) r.owner_incarnation) \
     FROM @.studio_runs r WHERE r.kind OPERATOR(pg_catalog.=) $1::pg_catalog.text AND r.key OPERATOR(pg_catalog.=) $2::pg_catalog.text \
       AND r.state OPERATOR(pg_catalog.=) 'running'::pg_catalog.text";

fn key_busy(row: &Row) -> Result<Inserted> {
    let holder = match (row.at(1)?, row.at(2)?) {
        (false, _) => Holder::Nobody,
        (true, false) => Holder::Gone,
        (true, true) => Holder::Pod,
    };
    Ok(Inserted::KeyBusy(row.at::<Uuid>(0)?.into(), holder))
}

/// Starts a run that this incarnation owns and runs at once. Repeating it with the same id changes nothing.
pub(crate) async fn start(db: &Database, owner: Incarnation, new: &Insert<'_>) -> Result<Inserted> {
    const SQL: &str = concat!(
        "WITH me AS MATERIALIZED ( \
           SELECT pod_id, incarnation FROM @.studio_pods WHERE incarnation = $1 AND state = 'active' \
         ), ",
        above!("$6::pg_catalog.int8"),
        ", run AS ( \
           INSERT INTO @.studio_runs (run_id, kind, key, input, owner_pod, owner_incarnation, fence, attempt) \
           SELECT $2, $3, $4, $5, me.pod_id, me.incarnation, \
                  pg_catalog.nextval('@.studio_fence'::pg_catalog.regclass), 1 FROM me CROSS JOIN above WHERE ",
        in_reach!("$6::pg_catalog.int8"),
        " ON CONFLICT DO NOTHING RETURNING run_id, fence, owner_pod, owner_incarnation \
         ), attempt AS ( \
           INSERT INTO @.studio_run_attempts (run_id, attempt, pod_id, incarnation, fence) \
           SELECT run_id, 1, owner_pod, owner_incarnation, fence FROM run \
         ) SELECT (SELECT fence FROM run), EXISTS (SELECT FROM me), ",
        in_reach!("$6::pg_catalog.int8"),
    );
    let step = "starting a run";
    let (owner_id, run_id, floor) = (owner.as_uuid(), new.run_id.as_uuid(), new.floor.get());
    let params: [&(dyn ToSql + Sync); 6] = [&owner_id, &run_id, &new.kind, &new.key, &new.input, &floor];
    for _ in 0..KEY_TRIES {
        let row = one(step, db.query_opt(step, SQL, &params).await?)?;
        if let Some(fence) = row.at::<Option<i64>>(0)? {
            return Ok(Inserted::Yes(fence.into()));
        }
        if !row.at::<bool>(1)? {
            return Ok(Inserted::NoOwner);
        }
        if !row.at::<bool>(2)? {
            fences::raise(db, new.floor).await?;
            continue;
        }
        if let Some(outcome) = conflict(db, step, Some(owner), new).await? {
            return Ok(outcome);
        }
    }
    Err(contended(new))
}

/// Starts a run that nobody owns, and tells every pod.
pub(crate) async fn submit(db: &Database, new: &Insert<'_>) -> Result<Inserted> {
    let step = "submitting a run";
    let params: [&(dyn ToSql + Sync); 4] = [&new.run_id.as_uuid(), &new.kind, &new.key, &new.input];
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

/// Starts a run that nobody owns with the kind, key and input of one that has ended. None of it passes through us, so
/// that the input stays as it is to the last digit. False: there is none such, it runs, or its key is taken.
pub(crate) async fn restart(db: &Database, ended: RunId, new: RunId) -> Result<bool> {
    const SQL: &str = "WITH run AS ( \
           INSERT INTO @.studio_runs (run_id, kind, key, input) \
           SELECT $2, r.kind, r.key, r.input FROM @.studio_runs r WHERE r.run_id = $1 AND r.state <> 'running' \
           ON CONFLICT DO NOTHING RETURNING run_id \
         ) SELECT pg_catalog.pg_notify(@.studio_channel(), 'recover') FROM run";
    Ok(db.query_opt("starting a run again", SQL, &[&ended.as_uuid(), &new.as_uuid()]).await?.is_some())
}

/// The running run that has the kind and key of this one, if there is another.
pub(crate) async fn holder_of_key(db: &Database, run_id: RunId) -> Result<Option<RunId>> {
    const SQL: &str = "SELECT h.run_id FROM @.studio_runs r JOIN @.studio_runs h ON h.kind = r.kind AND h.key = r.key \
         WHERE r.run_id = $1 AND h.run_id <> $1 AND h.state = 'running'";
    let row = db.query_opt("looking who has the key", SQL, &[&run_id.as_uuid()]).await?;
    row.map(|row| Ok(row.at::<Uuid>(0)?.into())).transpose()
}

/// The running run of this kind and key, else the newest that has ended.
pub(crate) async fn latest(db: &Database, kind: &str, key: &str) -> Result<Option<RunId>> {
    // The ended are looked for only where none is running.
    const SQL: &str = "WITH running AS MATERIALIZED ( \
           SELECT r.run_id FROM @.studio_runs r WHERE r.kind = $1 AND r.key = $2 AND r.state = 'running' LIMIT 1 \
         ), ended AS MATERIALIZED ( \
           SELECT r.run_id FROM @.studio_runs r \
            WHERE r.kind = $1 AND r.key = $2 AND NOT EXISTS (SELECT FROM running) \
            ORDER BY r.created_at DESC, r.run_id DESC LIMIT 1 \
         ) SELECT run_id FROM running UNION ALL SELECT run_id FROM ended";
    let row = db.query_opt("looking for the run of a key", SQL, &[&kind, &key]).await?;
    row.map(|row| Ok(row.at::<Uuid>(0)?.into())).transpose()
}

/// How often a start goes for a key whose holder ends between the insert and the look at it.
const KEY_TRIES: usize = 5;

fn contended(new: &Insert<'_>) -> Error {
    let key = new.key.unwrap_or_default();
    Error::new(ErrorKind::KeyBusy, format!("runs with key {key:?} come and go faster than one can be started"))
        .left("no run was started")
        .todo("start it again")
}

const SUBMIT: &str = "WITH run AS ( \
       INSERT INTO @.studio_runs (run_id, kind, key, input) \
         VALUES ($1::pg_catalog.uuid, $2::pg_catalog.text, $3::pg_catalog.text, $4::pg_catalog.jsonb) \
       ON CONFLICT DO NOTHING RETURNING run_id \
     ) SELECT pg_catalog.pg_notify(@.studio_channel(), 'recover'::pg_catalog.text) FROM run";

/// Why an insert found a row in its way: its own, from a try whose reply was lost, or one with the same key. `None`: it
/// is gone by now.
async fn conflict(db: &Database, step: &str, owner: Option<Incarnation>, new: &Insert<'_>) -> Result<Option<Inserted>> {
    const OWN: &str = "SELECT fence, owner_incarnation, state = 'running' FROM @.studio_runs WHERE run_id = $1";
    if let Some(row) = db.query_opt(step, OWN, &[&new.run_id.as_uuid()]).await? {
        let now = row.at::<Option<Uuid>>(1)?.map(Incarnation::from);
        if owner.is_none() || (now == owner && row.at(2)?) {
            return Ok(Some(Inserted::Yes(row.at::<i64>(0)?.into())));
        }
        return Err(Error::new(
            ErrorKind::Fenced,
            format!("run {} was started, and has ended or moved on by now", new.run_id),
        )
        .about_run(new.run_id)
        .done_before()
        .todo("follow it by its id"));
    }
    let busy = db.query_opt(step, BUSY, &[&new.kind, &new.key]).await?;
    busy.as_ref().map(key_busy).transpose()
}

/// What runs on the user's own connection ([`insert_in_txn`]), under the user's `search_path`: this statement, [`SUBMIT`] and
/// [`BUSY`]. Every operator, function and type in them is named with its schema, and every literal has its type, which a
/// test checks (`super::pins`).
const OWNED: &str = concat!(
    "WITH me AS MATERIALIZED ( \
       SELECT pod_id, incarnation FROM @.studio_pods \
        WHERE incarnation OPERATOR(pg_catalog.=) $1::pg_catalog.uuid AND state OPERATOR(pg_catalog.=) 'active'::pg_catalog.text \
     ), ",
    above!("$6::pg_catalog.int8"),
    ", run AS ( \
       INSERT INTO @.studio_runs (run_id, kind, key, input, owner_pod, owner_incarnation, fence) \
       SELECT $2::pg_catalog.uuid, $3::pg_catalog.text, $4::pg_catalog.text, $5::pg_catalog.jsonb, me.pod_id, me.incarnation, \
              pg_catalog.nextval('@.studio_fence'::pg_catalog.regclass) FROM me CROSS JOIN above WHERE ",
    in_reach!("$6::pg_catalog.int8"),
    " ON CONFLICT DO NOTHING RETURNING fence \
     ), told AS MATERIALIZED ( \
       SELECT pg_catalog.pg_notify(@.studio_channel(), 'runs'::pg_catalog.text) FROM run \
     ) SELECT (SELECT fence FROM run), EXISTS (SELECT FROM me), (SELECT pg_catalog.count(*) FROM told), ",
    in_reach!("$6::pg_catalog.int8"),
);

/// [`start`] or [`submit`] in the caller's transaction, on the caller's connection: `owner` takes it up when the
/// transaction has committed. Its first attempt begins only then.
pub(crate) async fn insert_in_txn(
    txn: &tokio_postgres::Transaction<'_>,
    schema: &Schema,
    owner: Option<Incarnation>,
    new: &Insert<'_>,
) -> Result<Inserted> {
    let step = "starting a run in the caller's transaction";
    let run_id = new.run_id.as_uuid();
    let fail = |e| errors::translate(step, e);
    let (inserted, owner_there) = match owner {
        Some(owner) => {
            let (owner, floor) = (owner.as_uuid(), new.floor.get());
            let params: [&(dyn ToSql + Sync); 6] = [&owner, &run_id, &new.kind, &new.key, &new.input, &floor];
            let row = txn.query_one(&*schema.sql(OWNED), &params).await.map_err(fail)?;
            if row.at::<bool>(1)? && !row.at::<bool>(3)? {
                return Err(fences::not_risen(new.floor));
            }
            (row.at::<Option<i64>>(0)?, row.at(1)?)
        }
        None => {
            let params: [&(dyn ToSql + Sync); 4] = [&run_id, &new.kind, &new.key, &new.input];
            let row = txn.query_opt(&*schema.sql(SUBMIT), &params).await.map_err(fail)?;
            (row.map(|_| 0), true)
        }
    };
    if let Some(fence) = inserted {
        return Ok(Inserted::Yes(fence.into()));
    }
    if !owner_there {
        return Ok(Inserted::NoOwner);
    }
    let busy = txn.query_opt(&*schema.sql(BUSY), &[&new.kind, &new.key]).await.map_err(fail)?;
    let busy = busy.as_ref().map(key_busy).transpose()?;
    busy.ok_or_else(|| {
        Error::new(ErrorKind::KeyBusy, format!("a run with key {:?} is running", new.key.unwrap_or_default()))
            .left("no run was started; the transaction is as it was")
            .todo("under an isolation level that cannot see it, begin a new transaction to find it")
    })
}

const CLAIM: &str = sql!("claim", "reach", "above", "as_expected", "crashed", "died_with");

/// So many runs are claimed by the statement that the connection has prepared. More are worth a plan of their own: one that
/// was made while the tables were all but empty goes through them once for each run (measured: 5 s for 500 of 10,000).
const FEW: usize = 20;

/// How many bytes of inputs and checkpoints come along with a claim, all its runs together. Only values that the server
/// keeps uncompressed do, so that their size is known. More would make a claim that does not fit in time: what is larger is
/// read afterwards. Less would cost claims of small payloads a second statement.
const ALONG_BYTES: i64 = 256 * 1024;

/// What claims of one pass have in common: the plan for many.
#[derive(Default)]
pub(crate) struct Claimer(Option<Planned>);

/// Claims runs for the incarnation `own`: a compare-and-swap on the owner and the fence that an *earlier* statement
/// read. A run whose expected owner is `own` itself is taken up anew, under a new fence. One whose last owner crashed
/// under it, as number `max_crashes` in a row, is quarantined instead; where that is 0 none is.
///
/// Expectations come in as parameters: a locking pick re-reads a row that was just claimed and would hand on its new,
/// living owner.
///
/// Every fence is above `floor`, the highest that this process was ever given.
pub(crate) async fn claim(
    db: &Database,
    claimer: &mut Claimer,
    own: Incarnation,
    wanted: &[&Candidate],
    max_crashes: u32,
    floor: Fence,
) -> Result<Claims> {
    let mut claims = Claims::default();
    if wanted.is_empty() {
        return Ok(claims);
    }
    let ids: Vec<_> = wanted.iter().map(|c| c.run_id.as_uuid()).collect();
    let expected: Vec<_> = wanted.iter().map(|c| c.owner.map(|o| o.as_uuid())).collect();
    let fences: Vec<_> = wanted.iter().map(|c| c.fence.get()).collect();
    let poison_from = i32::try_from(max_crashes).ok().filter(|n| *n > 0).unwrap_or(i32::MAX);
    let (own_id, reasons, floor) = (own.as_uuid(), crash_reasons(), floor.get());
    let params: [Param<'_>; 8] = [
        (&ids, Type::UUID_ARRAY),
        (&expected, Type::UUID_ARRAY),
        (&fences, Type::INT8_ARRAY),
        (&own_id, Type::UUID),
        (&reasons, Type::TEXT_ARRAY),
        (&floor, Type::INT8),
        (&poison_from, Type::INT4),
        (&ALONG_BYTES, Type::INT8),
    ];
    let step = "claiming runs";
    let values = params.each_ref().map(|(value, _)| *value);
    let rows = if wanted.len() > FEW || claimer.0.is_some() {
        let mut planned = match claimer.0.take() {
            Some(planned) => planned,
            None => db.plan(step, CLAIM, &params.map(|(_, of)| of)).await?,
        };
        let rows = planned.query(&values).await?;
        claimer.0 = Some(planned);
        rows
    } else {
        db.query(step, CLAIM, &values).await?
    };
    for row in rows {
        match (row.at::<Option<String>>("error")?, row.at::<Option<i32>>("unread")?) {
            (None, Some(bytes)) => claims.unread.push((read_facts(&row, Value::Null, None)?, bytes.into())),
            (None, None) => match read_claimed(&row) {
                Ok(claimed) => claims.claimed.push(claimed),
                Err(why) => {
                    let (owner, why) = (read_owner(&row, own)?, chain(&why));
                    claims.unreadable.push(Unreadable {
                        owner,
                        kind: row.at("kind")?,
                        attempt: row.at("attempt")?,
                        why,
                    });
                }
            },
            (Some(error), _) => {
                let (run_id, kind) = (row.at::<Uuid>("run_id")?.into(), row.at("kind")?);
                claims.quarantined.push(Quarantined { run_id, kind, error });
            }
        }
    }
    Ok(claims)
}

/// Runs a claim of nothing on a new connection, so that the server has [`claim`] parsed and planned. Then does the same
/// for the event log's function, in a transaction that is rolled back. That leaves a gap in the log's numbers, as any
/// transaction does that is rolled back.
pub(crate) fn warm_up_claim<'a>(
    client: &'a ClientWrapper,
    schema: &'a Schema,
) -> BoxFuture<'a, Result<(), tokio_postgres::Error>> {
    Box::pin(async move {
        let (nothing, nobody) = (Vec::<Uuid>::new(), Uuid::nil());
        let params: [&(dyn ToSql + Sync); 8] =
            [&nothing, &nothing, &Vec::<i64>::new(), &nobody, &Vec::<&str>::new(), &0_i64, &0_i32, &ALONG_BYTES];
        client.batch_execute(BEGIN_IMPATIENTLY).await?;
        let claimed = async { client.query(&client.prepare_cached(&*schema.sql(CLAIM)).await?, &params).await }.await;
        client.batch_execute("ROLLBACK").await?;
        claimed?;
        let warmed_up = client.batch_execute(&*schema.sql(WARM_UP_LOG)).await;
        if warmed_up.is_err() {
            client.batch_execute("ROLLBACK").await?;
        }
        warmed_up
    })
}

/// What is nested too deep was put there by hand, or by another program.
fn read_claimed(row: &Row) -> Result<Claimed> {
    read_facts(row, row.at("input")?, row.at("checkpoint")?)
}

fn read_facts(row: &Row, input: Value, checkpoint: Option<Value>) -> Result<Claimed> {
    Ok(Claimed {
        run_id: row.at::<Uuid>("run_id")?.into(),
        kind: row.at("kind")?,
        key: row.at("key")?,
        fence: row.at::<i64>("fence")?.into(),
        attempt: row.at("attempt")?,
        input,
        checkpoint,
        crashes: u32::try_from(row.at::<i32>("crashes")?).unwrap_or(0),
        checkpoint_seq: row.at("checkpoint_seq")?,
    })
}

fn read_owner(row: &Row, incarnation: Incarnation) -> Result<Owner> {
    Ok(Owner { run_id: row.at::<Uuid>("run_id")?.into(), incarnation, fence: row.at::<i64>("fence")?.into() })
}

/// Saves a checkpoint, the attempt's write of that number. That is progress: the crashes of former owners no longer
/// count. False: fenced, or a later write of the attempt was there first.
///
/// `seq` is how many chunks its stream has by now; `None`: as before. Where it has fewer, a failover took some back: the
/// attempt is as good as fenced.
pub(crate) async fn checkpoint(
    db: &Database,
    owner: Owner,
    number: i64,
    value: &Value,
    seq: Option<i64>,
) -> Result<bool> {
    const SQL: &str = "UPDATE @.studio_runs SET checkpoint = $5, checkpoint_seq = COALESCE($6::pg_catalog.int8, checkpoint_seq), crashes = 0, \
                written = $4 \
         WHERE run_id = $1 AND owner_incarnation = $2 AND fence = $3 AND state = 'running' AND written <= $4 \
           AND COALESCE($6::pg_catalog.int8, 0) <= COALESCE((SELECT pg_catalog.max(c.seq) + 1 FROM @.studio_run_chunks c \
                 WHERE c.run_id = $1 AND c.generation = stream_generation), 0) \
         RETURNING run_id";
    let params: [&(dyn ToSql + Sync); 6] =
        [&owner.run_id.as_uuid(), &owner.incarnation.as_uuid(), &owner.fence.get(), &number, &value, &seq];
    Ok(db.query_opt("saving a checkpoint", SQL, &params).await?.is_some())
}

/// Ends a run with the columns of its output. False: fenced, or it had ended, or its stream has fewer than `seq` chunks.
pub(crate) async fn finish(
    db: &Database,
    owner: Owner,
    ending: &Ending,
    output: &Columns<'_>,
    seq: Option<i64>,
) -> Result<bool> {
    const SQL: &str = "WITH done AS ( \
           UPDATE @.studio_runs SET state = $4, result = $5, error = $6, finished_at = pg_catalog.clock_timestamp(), \
                  stdout = $7, stderr = $8, exit_code = $9, output_escaped = $10, parse_error = $11 \
            WHERE run_id = $1 AND owner_incarnation = $2 AND fence = $3 AND state = 'running' \
              AND COALESCE($12::pg_catalog.int8, 0) <= COALESCE((SELECT pg_catalog.max(c.seq) + 1 \
                    FROM @.studio_run_chunks c WHERE c.run_id = $1 AND c.generation = stream_generation), 0) \
           RETURNING run_id, attempt \
         ), closed AS ( \
           UPDATE @.studio_run_attempts a SET ended_at = pg_catalog.clock_timestamp(), reason = $4 FROM done \
            WHERE a.run_id = done.run_id AND a.attempt = done.attempt \
         ) SELECT run_id FROM done";
    let error = ending.error().map(cut_error);
    let params: [&(dyn ToSql + Sync); 12] = [
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
    ];
    Ok(db.query_opt("ending a run", SQL, &params).await?.is_some())
}

/// Gives a run back: nobody owns it, which is no crash, and every pod is told. False: fenced.
pub(crate) async fn give_back(db: &Database, owner: Owner) -> Result<bool> {
    const SQL: &str = "WITH given AS ( \
           UPDATE @.studio_runs SET owner_pod = NULL, owner_incarnation = NULL \
            WHERE run_id = $1 AND owner_incarnation = $2 AND fence = $3 AND state = 'running' RETURNING run_id, attempt \
         ), closed AS ( \
           UPDATE @.studio_run_attempts a SET ended_at = pg_catalog.clock_timestamp(), reason = 'yielded' FROM given \
            WHERE a.run_id = given.run_id AND a.attempt = given.attempt \
         ) SELECT pg_catalog.pg_notify(@.studio_channel(), 'recover') FROM given";
    let params: [&(dyn ToSql + Sync); 3] = [&owner.run_id.as_uuid(), &owner.incarnation.as_uuid(), &owner.fence.get()];
    Ok(db.query_opt("yielding a run", SQL, &params).await?.is_some())
}

/// A write of the run's row that changes nothing: whether its owner's small writes pass. False: fenced.
pub(crate) async fn touch(db: &Database, owner: Owner) -> Result<bool> {
    const SQL: &str = "UPDATE @.studio_runs SET written = written \
         WHERE run_id = $1 AND owner_incarnation = $2 AND fence = $3 AND state = 'running' RETURNING run_id";
    let params: [&(dyn ToSql + Sync); 3] = [&owner.run_id.as_uuid(), &owner.incarnation.as_uuid(), &owner.fence.get()];
    Ok(db.query_opt("trying a small write", SQL, &params).await?.is_some())
}

/// Where a run stands now.
pub(crate) async fn standing(db: &Database, run_id: RunId) -> Result<Option<Standing>> {
    const SQL: &str = "SELECT state, owner_pod, owner_incarnation, fence FROM @.studio_runs WHERE run_id = $1";
    let row = db.query_opt("reading where a run stands", SQL, &[&run_id.as_uuid()]).await?;
    let read = |row: Row| {
        Ok(Standing {
            state: row.at(0)?,
            owner_pod: row.at(1)?,
            owner: row.at::<Option<Uuid>>(2)?.map(Incarnation::from),
            fence: row.at::<i64>(3)?.into(),
        })
    };
    row.map(read).transpose()
}

/// Cancels a run, whoever owns it, and tells the pods, of which its owner finds out, and those who read its stream.
pub(crate) async fn cancel(db: &Database, run_id: RunId) -> Result<Cancelled> {
    const SQL: &str = "WITH done AS ( \
           UPDATE @.studio_runs SET state = 'cancelled', finished_at = pg_catalog.clock_timestamp() \
            WHERE run_id = $1 AND state = 'running' RETURNING run_id, attempt \
         ), closed AS ( \
           UPDATE @.studio_run_attempts a SET ended_at = pg_catalog.clock_timestamp(), reason = 'cancelled' FROM done \
            WHERE a.run_id = done.run_id AND a.attempt = done.attempt AND a.ended_at IS NULL \
         ) SELECT pg_catalog.pg_notify(@.studio_channel(), 'runs'), \
                  pg_catalog.pg_notify(@.studio_stream_channel(), $2) FROM done";
    let told = Told::new(NOBODY, [run_id].iter()).to_string();
    if db.query_opt("cancelling a run", SQL, &[&run_id.as_uuid(), &told]).await?.is_some() {
        return Ok(Cancelled::Now);
    }
    Ok(match standing(db, run_id).await? {
        Some(standing) => Cancelled::AlreadyEnded { state: standing.state },
        None => Cancelled::NotFound,
    })
}

fn one(step: &str, row: Option<Row>) -> Result<Row> {
    row.ok_or_else(|| Error::new(ErrorKind::Database, format!("{step}: the server sent no row")))
}

/// What an owner is told whose write found no row.
pub(crate) fn fenced(what: &str, owner: Owner, standing: Option<&Standing>) -> Error {
    let now = match standing {
        None => "the run is gone".to_owned(),
        Some(s) if s.state != "running" => format!("the run is {}", s.state),
        Some(s) => match &s.owner_pod {
            Some(pod) => format!("pod {pod} owns it under fence {}", s.fence),
            None => "nobody owns it".to_owned(),
        },
    };
    Error::new(
        ErrorKind::Fenced,
        format!("run {}: {what} under fence {} was refused: {now}", owner.run_id, owner.fence),
    )
    .about_run(owner.run_id)
    .left("nothing was written")
    .todo("stop working on it")
}

/// A pod's name in an error.
pub(crate) fn not_registered(pod: &PodId) -> Error {
    Error::new(ErrorKind::Detached, format!("pod {pod} is not in the roster as this incarnation, or drains"))
        .left("no run was started")
        .todo("retry on another pod, or on this one when it is ready again")
}

#[cfg(test)]
mod tests {
    use super::super::pins::unpinned;
    use super::*;

    #[test]
    fn statements_on_the_users_connection_are_pinned() {
        for sql in [OWNED, SUBMIT, BUSY] {
            assert_eq!(unpinned(sql), Vec::<String>::new(), "{sql}");
        }
    }
}
