//! Reads and raises the sequence of fences (L9).

use std::time::Duration;

use tokio_postgres::types::Type;

use crate::error::{Error, ErrorKind, Result};
use crate::id::Fence;
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::session::Session;
use crate::pg::statement::sql;
use crate::protocol::fences::JUMP;

/// How long the first read of all fences may take.
const FIRST_LOOK: Duration = Duration::from_secs(60);

/// The state of the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// The last number that the sequence gave; 0 if it has given none.
    pub(crate) last: Fence,
    /// How many numbers a session caches in advance. With more than 1, fences can fall, because an idle session keeps
    /// low numbers.
    pub(crate) cache: i64,
}

const SEQUENCE: &str = sql!("read_fence_sequence");

pub(crate) async fn sequence(db: &Database) -> Result<Sequence> {
    let row = db.query_opt("reading the sequence of fences", SEQUENCE, &[]).await?;
    let row = row.ok_or_else(|| Error::new(ErrorKind::SchemaMissing, "studio_fence is no sequence"))?;
    Ok(Sequence { last: row.at::<i64>("last")?.into(), cache: row.at("seqcache")? })
}

/// Raises the sequence above `floor`, and sets CACHE back to 1. Never lowers it, even if several sessions raise it and
/// take numbers at once. Returns the sequence's last number after that.
pub(crate) async fn raise(db: &Database, floor: Fence) -> Result<Fence> {
    let row = db.query_opt("raising the sequence of fences", RAISE, &[&floor.get()]).await.map_err(advise)?;
    let last: i64 = row.map_or(Ok(0), |row| row.at("last"))?;
    say_raised(floor, last);
    Ok(last.into())
}

const RAISE: &str = "SELECT @.studio_raise_fence($1::bigint) AS last";

fn advise(error: Error) -> Error {
    error.state("the sequence is as it was; what needs a fence above it is not claimed").help(
        "run `podlock migrate grants` again for the pods' role, or, as the owner, SELECT \
             studio_raise_fence(n::bigint), with the name of the schema before it",
    )
}

fn say_raised(floor: Fence, last: i64) {
    tracing::warn!(
        target: "podlock", event = "fences_raised", floor = floor.get(), last,
        "the sequence of fences stood below fences that were given, or handed numbers out in advance; \
         it was raised, with CACHE 1"
    );
}

/// Before the first fence is given, raises the sequence above the fences that the tables already have. Tables that
/// were copied by logical replication, or by `pg_dump` of single tables, come without their sequences. If a fence was
/// given already, nothing is read: a run whose fence is above the sequence raises it when the run is claimed.
pub(crate) async fn step_past_what_is_there(session: &Session) -> Result<()> {
    const HIGHEST: &str = sql!("find_highest_fence");
    let step = "looking at the fences that are there";
    if session.query_one(step, SEQUENCE, &[]).await?.at::<i64>("last")? != 0 {
        return Ok(());
    }
    // The statement reads the whole table, once in the life of a database. If that takes longer than the limit,
    // because the table is being filled, it fails.
    let limit = FIRST_LOOK.as_millis();
    session.execute_batch(step, &format!("SET statement_timeout = {limit}")).await?;
    let rows = session.query_limited(step, HIGHEST, &[(&JUMP, Type::INT8)], FIRST_LOOK).await?;
    let highest = rows.first().map_or(Ok(None), |row| row.at::<Option<i64>>("highest"))?;
    let Some(highest) = highest else { return Ok(()) };
    let row = session.query_one(step, RAISE, &[(&highest, Type::INT8)]).await.map_err(advise)?;
    say_raised(highest.into(), row.at("last")?);
    Ok(())
}

/// The error of a start in the caller's transaction when the sequence must be raised. Such a start cannot raise it:
/// that would lock the sequence until the transaction ends.
pub(crate) fn not_risen(floor: Fence) -> Error {
    Error::new(
        ErrorKind::Database,
        format!(
            "the sequence of fences stands far below {floor}, which this pod was given, or hands numbers out in advance"
        ),
    )
    .state("no run was started; the transaction is as it was")
    .help("start the run outside of a transaction, or wait for this pod's next sweep, which raises the sequence")
}
