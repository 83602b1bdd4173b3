//! The sequence of fences: where it stands, and raising it (L9).

use std::time::Duration;

use tokio_postgres::types::Type;

use crate::error::{Error, ErrorKind, Result};
use crate::id::Fence;
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::session::Session;
use crate::protocol::fences::JUMP;

/// How long the first look at all fences may take.
const FIRST_LOOK: Duration = Duration::from_secs(60);

/// The sequence as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// The last number that it gave; 0: none yet.
    pub(crate) last: Fence,
    /// How many numbers a session takes in advance. More than 1, and fences can fall: an idle session holds low ones.
    pub(crate) cache: i64,
}

pub(crate) async fn sequence(db: &Database) -> Result<Sequence> {
    const SQL: &str = "SELECT COALESCE(pg_sequence_last_value(q.seqrelid::regclass), 0::int8) AS last, \
               q.seqcache FROM pg_sequence q WHERE q.seqrelid = '@.studio_fence'::regclass";
    let row = db.query_opt("reading the sequence of fences", SQL, &[]).await?;
    let row = row.ok_or_else(|| Error::new(ErrorKind::SchemaMissing, "studio_fence is no sequence"))?;
    Ok(Sequence { last: row.at::<i64>("last")?.into(), cache: row.at("seqcache")? })
}

/// Raises the sequence above `floor`, and sets CACHE back to 1. Never lowers it, however many raise it and take numbers
/// at once. Returns where it stands then.
pub(crate) async fn raise(db: &Database, floor: Fence) -> Result<Fence> {
    let row = db.query_opt("raising the sequence of fences", RAISE, &[&floor.get()]).await.map_err(advise)?;
    let last: i64 = row.map_or(Ok(0), |row| row.at("last"))?;
    say_raised(floor, last);
    Ok(last.into())
}

const RAISE: &str = "SELECT @.studio_raise_fence($1::bigint) AS last";

fn advise(error: Error) -> Error {
    error
        .state("the sequence is as it was; what needs a fence above it is not claimed")
        .help("run `podlock migrate grants` again for the pods' role, or, as the owner, SELECT studio_raise_fence(n::bigint), with the name of the schema before it")
}

fn say_raised(floor: Fence, last: i64) {
    tracing::warn!(
        target: "podlock", event = "fences_raised", floor = floor.get(), last,
        "the sequence of fences stood below fences that were given, or handed numbers out in advance; it was raised, with CACHE 1"
    );
}

/// Before the first fence is given: steps past the fences of a copy of the tables whose sequences did not come along,
/// as logical replication and `pg_dump` of single tables make it. Where a fence was given already, nothing is looked
/// at: runs whose fences are above the sequence raise it when they are claimed.
pub(crate) async fn step_past_what_is_there(session: &Session) -> Result<()> {
    const IS_UNUSED: &str = "SELECT pg_sequence_last_value('@.studio_fence'::regclass) IS NULL AS is_unused";
    // What was made by hand is not stepped past: see `protocol::fences`.
    const HIGHEST: &str = "SELECT max(r.fence) AS highest FROM @.studio_runs r WHERE r.fence BETWEEN 1 AND $1";
    let step = "looking at the fences that are there";
    if !session.query_one(step, IS_UNUSED, &[]).await?.at::<bool>("is_unused")? {
        return Ok(());
    }
    // It reads the whole table, once in the life of a database. A table that is being filled is not waited for longer.
    let limit = FIRST_LOOK.as_millis();
    session.execute_batch(step, &format!("SET statement_timeout = {limit}")).await?;
    let rows = session.query_limited(step, HIGHEST, &[(&JUMP, Type::INT8)], FIRST_LOOK).await?;
    let highest = rows.first().map_or(Ok(None), |row| row.at::<Option<i64>>("highest"))?;
    let Some(highest) = highest else { return Ok(()) };
    let row = session.query_one(step, RAISE, &[(&highest, Type::INT8)]).await.map_err(advise)?;
    say_raised(highest.into(), row.at("last")?);
    Ok(())
}

/// A start in the caller's transaction cannot raise the sequence: that locks it until the transaction ends.
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
