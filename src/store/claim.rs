//! Claims runs.

use deadpool_postgres::ClientWrapper;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::crashes::crash_reasons;
use super::pods::warm_up_log;
use super::rows::{Claimed, Claims, Owner, Quarantined, Unreadable};
use crate::error::{Result, chain};
use crate::id::{Fence, Incarnation};
use crate::pg::pool::{Database, Planned};
use crate::pg::reply::Reply;
use crate::pg::schema::Schema;
use crate::pg::statement::sql;
use crate::pg::txn::{BEGIN_IMPATIENTLY, Param};
use crate::protocol::ending::Reason;
use crate::protocol::recover::Candidate;

const CLAIM: &str = sql!("claim", "reach", "above", "as_expected", "crashed", "died_with");

/// Up to this many runs, a claim uses the statement that the connection has prepared. More runs get a plan of their
/// own. A plan that was made while the tables were almost empty reads all of a table once for each run (measured: 5 s
/// for 500 of 10,000).
const FEW: usize = 20;

/// How many bytes of inputs and checkpoints one claim returns, for all its runs together. It returns only values that
/// the server stores uncompressed, because their size is known. With more, a claim might not end in time; larger
/// payloads are read afterwards. With less, claims of small payloads would need a second statement.
const ALONG_BYTES: i64 = 256 * 1024;

/// The plan for many runs, which all claims of one pass share.
#[derive(Default)]
pub(crate) struct Claimer(Option<Planned>);

/// Claims runs for the incarnation `own`. A claim is a compare-and-swap on the owner and the fence that an *earlier*
/// statement read. If the expected owner is `own` itself, the run is begun again under a new fence. A run under which
/// `max_crashes` owners in a row have crashed, the last one included, is quarantined instead. With `max_crashes` 0 no
/// run is.
///
/// Every new fence is above `floor`, the highest fence that this process was ever given.
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

/// Claims nothing on a new connection, so that the server has parsed and planned [`claim`]. Then calls the event log's
/// function in a transaction that is rolled back. The rollback leaves a gap in the log's numbers, as every rollback
/// does.
pub(crate) fn warm_up_claim<'a>(
    client: &'a ClientWrapper,
    schema: &'a Schema,
) -> BoxFuture<'a, Result<(), tokio_postgres::Error>> {
    Box::pin(async move {
        let (nothing, nobody) = (Vec::<Uuid>::new(), Uuid::nil());
        let params: [&(dyn ToSql + Sync); 8] =
            [&nothing, &nothing, &Vec::<i64>::new(), &nobody, &Vec::<&str>::new(), &0_i64, &0_i32, &ALONG_BYTES];
        client.batch_execute(BEGIN_IMPATIENTLY).await?;
        let claimed = async { client.query(&client.prepare_cached(&schema.sql(CLAIM)).await?, &params).await }.await;
        client.batch_execute("ROLLBACK").await?;
        claimed?;
        let warmed_up = client.batch_execute(&warm_up_log(schema)).await;
        if warmed_up.is_err() {
            client.batch_execute("ROLLBACK").await?;
        }
        warmed_up
    })
}

/// Reads a claimed run. JSON that is nested too deep was stored by hand, or by another program.
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
        movable: row.at("movable")?,
        traceparent: row.at("traceparent")?,
        taken_over: row.at::<Option<&str>>("taken_over")?.map(taken_over),
    })
}

/// The stable name of how the attempt before ended. A reason that a newer version writes counts as a loss.
fn taken_over(name: &str) -> &'static str {
    match name {
        "released" => "released",
        "adopted" => "adopted",
        reason => Reason::parse(reason).unwrap_or(Reason::Lost).as_str(),
    }
}

fn read_owner(row: &Row, incarnation: Incarnation) -> Result<Owner> {
    Ok(Owner { run_id: row.at::<Uuid>("run_id")?.into(), incarnation, fence: row.at::<i64>("fence")?.into() })
}
