//! Statements of the roll-ups: hourly rows, how reliable pods are, and who is at it. Times are by the server's clock.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::statement::sql;
use crate::timestamp::Timestamp;

/// How long the pod at a roll-up may be silent before another continues it. Each of its statements is a sign of life,
/// and none takes as long as this.
const CLAIM: Duration = Duration::from_secs(60);

/// The two roll-ups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Hourly,
    Reliability,
}

impl What {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Hourly => "hourly",
            Self::Reliability => "reliability",
        }
    }
}

/// Who wants a roll-up, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// Names the one who makes it in each write.
    pub(crate) token: Uuid,
    /// The pod's name. `None`: an operator.
    pub(crate) by: Option<&'a str>,
    /// The label to score by, or an empty text. `None`: as the last roll-up did.
    pub(crate) label: Option<&'a str>,
    /// How old the last one must be. `None`: it is wanted at once.
    pub(crate) every: Option<Duration>,
}

/// A roll-up that the caller is at.
#[derive(Clone, Debug)]
pub(crate) struct Claimed {
    /// All hours before this one have their rows.
    pub(crate) upto: Option<Timestamp>,
    /// The slices that are done, of how many.
    pub(crate) slices: Option<(i32, i32)>,
    pub(crate) score_by: String,
    pub(crate) now: Timestamp,
    /// When the current hour began.
    pub(crate) hour: Timestamp,
}

/// Begins or continues a roll-up. `None`: it is not due, or another is at it.
pub(crate) async fn claim(db: &Database, what: What, wanted: Wanted<'_>) -> Result<Option<Claimed>> {
    const SQL: &str = sql!("claim_roll_up");
    let Wanted { token, by, label, every } = wanted;
    let (what, every, claim) = (what.as_str(), every.map(|every| every.as_secs_f64()), CLAIM.as_secs_f64());
    let row = db.query_opt("claiming a roll-up", SQL, &[&what, &token, &by, &label, &every, &claim]).await?;
    let Some(row) = row else { return Ok(None) };
    let slices = row.at::<Option<i32>>("slice")?.zip(row.at("slices")?);
    let (upto, score_by, now) = (row.at("upto")?, row.at("score_by")?, row.at("now")?);
    Ok(Some(Claimed { upto, slices, score_by, now, hour: row.at("hour")? }))
}

/// Says that a roll-up goes on, and how many slices are done. False: it is another's by now.
pub(crate) async fn step(db: &Database, what: What, token: Uuid, slices: Option<(i32, i32)>) -> Result<bool> {
    const SQL: &str = sql!("step_roll_up");
    let (slice, slices) = slices.unzip();
    let row = db.query_opt("continuing a roll-up", SQL, &[&what.as_str(), &token, &slice, &slices, &false]).await?;
    Ok(row.is_some())
}

/// Says that a roll-up is complete. False: it is another's by now.
pub(crate) async fn finish(db: &Database, what: What, token: Uuid) -> Result<bool> {
    const SQL: &str = sql!("step_roll_up");
    let none = None::<i32>;
    let row = db.query_opt("ending a roll-up", SQL, &[&what.as_str(), &token, &none, &none, &true]).await?;
    Ok(row.is_some())
}

/// Finds where the first roll-up of samples begins.
pub(crate) async fn first_hour(db: &Database) -> Result<Timestamp> {
    const SQL: &str = sql!("find_first_hour");
    let step = "looking for the oldest samples";
    one(step, db.query(step, SQL, &[]).await?)?.at("hour")
}

/// What a write did. `None`: the roll-up is another's by now, and nothing was written.
type Written = Result<Option<i64>>;

fn written(step: &str, rows: Vec<Row>) -> Written {
    let row = one(step, rows)?;
    Ok(if row.at("is_mine")? { Some(row.at("rows")?) } else { None })
}

/// Makes the rows of some whole hours. Afterwards, all hours before `upto` have their rows.
pub(crate) async fn roll_up_hours(
    db: &Database,
    token: Uuid,
    from: Timestamp,
    to: Timestamp,
    upto: Timestamp,
) -> Written {
    const SQL: &str = sql!("roll_up_hours");
    let step = "rolling up samples";
    written(step, db.query(step, SQL, &[&token, &from, &to, &upto]).await?)
}

/// Deletes at most `most` hourly rows that are older than `keep`.
pub(crate) async fn prune_hours(db: &Database, keep: Duration, most: i32) -> Result<i32> {
    const SQL: &str = sql!("prune_hours");
    let step = "deleting old hourly rows";
    one(step, db.query(step, SQL, &[&keep.as_secs_f64(), &most]).await?)?.at("gone")
}

/// Counts the sessions that scores are made from, roughly, and at most about this many.
pub(crate) async fn count_sessions(db: &Database, since: Timestamp, most: i64) -> Result<i64> {
    const SQL: &str = sql!("count_scored_sessions");
    let step = "counting sessions";
    one(step, db.query(step, SQL, &[&since, &most]).await?)?.at("sessions")
}

/// A part of all pods, or of all values of a label.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice<'a> {
    /// Empty: by the pod's name.
    pub(crate) label: &'a str,
    pub(crate) slices: i32,
    pub(crate) slice: i32,
}

/// A session, and whose score it counts for.
#[derive(Debug)]
pub(crate) struct Scored {
    pub(crate) key: String,
    pub(crate) began_at: Timestamp,
    pub(crate) ended_at: Option<Timestamp>,
    pub(crate) reason: Option<String>,
    /// The place after which the next page begins.
    pub(crate) place: (Timestamp, Uuid),
}

impl Scored {
    fn read(row: &Row) -> Result<Self> {
        Ok(Self {
            key: row.at("key")?,
            began_at: row.at("began_at")?,
            ended_at: row.at("ended_at")?,
            reason: row.at("reason")?,
            place: (row.at("place")?, row.at("incarnation")?),
        })
    }
}

/// Reads the next sessions that ended after this place.
pub(crate) async fn ended_sessions(
    db: &Database,
    of: Slice<'_>,
    (at, id): (Timestamp, Uuid),
    most: i64,
) -> Result<Vec<Scored>> {
    const SQL: &str = sql!("read_ended_sessions", "score_key", "in_slice");
    let Slice { label, slices, slice } = of;
    let rows = db.query("reading sessions to score", SQL, &[&label, &slices, &slice, &at, &id, &most]).await?;
    rows.iter().map(Scored::read).collect()
}

/// Reads the next sessions that nobody has closed and that began after this place.
pub(crate) async fn open_sessions(
    db: &Database,
    of: Slice<'_>,
    after: Option<(Timestamp, Uuid)>,
    most: i64,
) -> Result<Vec<Scored>> {
    const SQL: &str = sql!("read_open_sessions", "score_key", "in_slice");
    let Slice { label, slices, slice } = of;
    let (at, id) = after.unzip();
    let id = id.unwrap_or_default();
    let rows = db.query("reading open sessions to score", SQL, &[&label, &slices, &slice, &at, &id, &most]).await?;
    rows.iter().map(Scored::read).collect()
}

/// Returns which of these pods had a session that began before `before`.
pub(crate) async fn pods_seen(db: &Database, pods: &[&str], before: Timestamp) -> Result<Vec<String>> {
    const SQL: &str = sql!("find_pods_seen");
    db.query("looking for earlier sessions", SQL, &[&pods, &before]).await?.iter().map(|row| row.at("pod_id")).collect()
}

/// Writes how reliable pods are: an array of objects.
pub(crate) async fn write_reliability(db: &Database, token: Uuid, rows: &Value) -> Written {
    const SQL: &str = sql!("write_reliability");
    let step = "writing scores";
    written(step, db.query(step, SQL, &[&token, rows]).await?)
}

/// Deletes at most `most` scores of a slice whose pods are not among `keys`.
pub(crate) async fn delete_unscored(db: &Database, token: Uuid, keys: &[&str], of: Slice<'_>, most: i64) -> Written {
    const SQL: &str = sql!("delete_unscored", "in_slice");
    let step = "deleting old scores";
    written(step, db.query(step, SQL, &[&token, &keys, &of.slices, &of.slice, &most]).await?)
}

/// The time so many microseconds after 1970.
pub(crate) fn at(us: i64) -> Result<Timestamp> {
    let since = Duration::from_micros(us.unsigned_abs());
    let time = if us < 0 { SystemTime::UNIX_EPOCH - since } else { SystemTime::UNIX_EPOCH + since };
    Timestamp::try_from(time)
}

fn one(step: &str, rows: Vec<Row>) -> Result<Row> {
    let none = || Error::new(ErrorKind::Database, format!("{step}: the server sent no row"));
    rows.into_iter().next().ok_or_else(none)
}
