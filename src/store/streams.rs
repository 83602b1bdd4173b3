//! Statements on the streams of runs. A write of the owner names its incarnation and its fence (L5), and locks the
//! run's row in the same statement. So no write of a former owner succeeds after a claim.

use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::rows::Owner;
use crate::error::{Error, Result};
use crate::id::{Fence, Incarnation, RunId};
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::schema::quote_identifier;
use crate::pg::session::Session;
use crate::pg::statement::sql;
use crate::pg::txn::Param;
use crate::protocol::failures::{ERROR_CHARS, beginning};
use crate::protocol::notices::{GROUPS_MOST, group};
use crate::protocol::stream::{Facts, Position};

const APPEND: &str = sql!("append_chunks", "tell_readers");
const APPEND_WITH_CHECKPOINT: &str = sql!("append_chunk_with_checkpoint", "owned_by");
const RESTART: &str = sql!("restart_stream", "owned_by", "stream_length");
const CONTINUE: &str = sql!("continue_stream", "owned_by", "stream_length");
const READ: &str = sql!("read_streams", "stream_length");

/// How many chunks and how many bytes one answer to a reader has. The first chunk does not count towards the bytes.
const PAGE_CHUNKS: i64 = 2048;
const PAGE_BYTES: i64 = 256 * 1024;
/// The most bytes for all readers together in one statement. It is halved after a statement that did not end in time.
pub(crate) const LOOK_BYTES: i64 = 8 * 1024 * 1024;

/// One character more than is shown, so that a cut is noticed and marked.
const ERROR_READ: i32 = ERROR_CHARS as i32 + 1;

/// How often a statement is repeated because its row changed between its snapshot and its lock. A call that was dropped
/// while its statement ran can change the row then.
const MOVED_TRIES: usize = 5;

/// Consecutive chunks of one run.
#[derive(Debug)]
pub(crate) struct Appended {
    pub(crate) owner: Owner,
    pub(crate) generation: i32,
    /// The number of the attempt's last numbered write before them. If a later write was accepted, these chunks come
    /// too late.
    pub(crate) number: i64,
    pub(crate) first_seq: i64,
    pub(crate) bodies: Vec<String>,
}

/// The result of storing a run's chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// The chunks are stored, once. This statement stored them, or an earlier one whose reply was lost.
    Yes,
    /// The stream is not where this attempt left it: a failover lost some of it.
    Adrift,
    /// Another attempt has the run by now, or another session has locked its row. The statement does not wait for such
    /// a lock.
    No,
}

/// Whose readers a statement notifies, if somebody has said that there are some.
pub(crate) struct Tell {
    /// The pod whose own readers need no notice.
    own: Option<Uuid>,
    by: String,
    runs: Vec<Uuid>,
    groups: Vec<String>,
}

/// The most groups that a notice names, as the statements take it.
pub(super) const TELL_MOST: i32 = GROUPS_MOST as i32;

impl Tell {
    /// The readers of these runs, but for those of the pod `own`. `by` is the number that this process puts into its
    /// notices.
    pub(crate) fn new(own: Option<Incarnation>, by: u32, runs: impl Iterator<Item = RunId>) -> Self {
        let (runs, groups) = runs.map(|run| (run.as_uuid(), format!("{:04x}", group(run)))).unzip();
        Self { own: own.map(|own| own.as_uuid()), by: format!("{by:08x}"), runs, groups }
    }

    /// The arguments `own`, `by`, `told_runs`, `told_groups` and `groups_most` of `part/tell_readers.sql`.
    pub(super) fn params(&self) -> [&(dyn ToSql + Sync); 5] {
        [&self.own, &self.by, &self.runs, &self.groups, &TELL_MOST]
    }
}

/// Stores chunks of several runs of this pod, and notifies readers as `tell` says. Returns the result for each, in the
/// order of `chunks`, and whether readers were notified.
///
/// Chunks that are stored already are not stored again, so a repetition changes nothing. A repetition whose first try
/// has not ended yet fails on the primary key ([`is_under_way`]).
///
/// Chunks beyond all chunks that the run ever had are progress: crashes of former owners no longer count.
pub(crate) async fn append(db: &Database, chunks: &[Appended], tell: &Tell) -> Result<(Vec<Stored>, bool)> {
    let count = chunks.iter().map(|c| c.bodies.len()).sum();
    let (mut nths, mut seqs, mut bodies) =
        (Vec::with_capacity(count), Vec::with_capacity(count), Vec::with_capacity(count));
    for (nth, run) in (1_i32..).zip(chunks) {
        for (seq, body) in (run.first_seq..).zip(&run.bodies) {
            nths.push(nth);
            seqs.push(seq);
            bodies.push(body.as_str());
        }
    }
    let of = |f: fn(&Appended) -> i64| chunks.iter().map(f).collect::<Vec<_>>();
    let ids: Vec<_> = chunks.iter().map(|c| c.owner.run_id.as_uuid()).collect();
    let incarnations: Vec<_> = chunks.iter().map(|c| c.owner.incarnation.as_uuid()).collect();
    let generations: Vec<_> = chunks.iter().map(|c| c.generation).collect();
    let (fences, numbers, first) = (of(|c| c.owner.fence.get()), of(|c| c.number), of(|c| c.first_seq));
    let next = of(|c| c.first_seq + i64::try_from(c.bodies.len()).unwrap_or(i64::MAX));
    let mut params: Vec<&(dyn ToSql + Sync)> =
        vec![&ids, &incarnations, &fences, &generations, &numbers, &first, &next, &nths, &seqs, &bodies];
    params.extend(tell.params());
    let rows = db.query("appending to streams", APPEND, &params).await?;
    let (mut stored, mut told) = (vec![Stored::No; chunks.len()], false);
    for row in &rows {
        told |= row.at::<i64>("told")? > 0;
        if let Some(slot) = usize::try_from(row.at::<i64>("nth")? - 1).ok().and_then(|nth| stored.get_mut(nth)) {
            *slot = if row.at("fits")? { Stored::Yes } else { Stored::Adrift };
        }
    }
    Ok((stored, told))
}

/// Whether chunks were not stored because an earlier try of the same statement is still storing them.
pub(crate) fn is_under_way(error: &Error) -> bool {
    error.sqlstate() == Some("23505")
}

/// Stores one chunk together with a checkpoint, under this write number of the attempt. Returns false if the owner is
/// fenced, or if the stream is not where this attempt left it.
pub(crate) async fn append_with_checkpoint(
    db: &Database,
    owner: Owner,
    number: i64,
    (generation, seq): (i32, i64),
    body: &str,
    value: &serde_json::Value,
) -> Result<bool> {
    let (run_id, incarnation) = (owner.run_id.as_uuid(), owner.incarnation.as_uuid());
    let params: [&(dyn ToSql + Sync); 8] =
        [&run_id, &incarnation, &owner.fence.get(), &number, &generation, &seq, &value, &body];
    Ok(db.query_opt("saving a chunk and a checkpoint", APPEND_WITH_CHECKPOINT, &params).await?.is_some())
}

/// Takes back all chunks of the stream and begins a new generation, in one transaction. If the stream is empty, the
/// generation stays. Returns the generation; `None` if the owner is fenced.
pub(crate) async fn restart(db: &Database, owner: Owner, number: i64) -> Result<Option<i32>> {
    let params: [&(dyn ToSql + Sync); 4] =
        [&owner.run_id.as_uuid(), &owner.incarnation.as_uuid(), &owner.fence.get(), &number];
    for _ in 0..MOVED_TRIES {
        match db.query_opt("restarting a stream", RESTART, &params).await? {
            None => return Ok(None),
            Some(row) => {
                if let Some(generation) = row.at("generation")? {
                    return Ok(Some(generation));
                }
            }
        }
    }
    Ok(None)
}

/// The result of continuing from a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Continued {
    /// The stream continues in this generation, with this chunk number.
    Yes(i32, i64),
    /// The stream has only this many chunks, so there would be a gap.
    Short(i64),
}

/// Keeps the chunks before `seq` and takes back the others, in one transaction. Without `seq` it keeps all. `None`: the
/// owner is fenced.
pub(crate) async fn go_on(db: &Database, owner: Owner, number: i64, seq: Option<i64>) -> Result<Option<Continued>> {
    let params: [&(dyn ToSql + Sync); 5] =
        [&owner.run_id.as_uuid(), &owner.incarnation.as_uuid(), &owner.fence.get(), &number, &seq];
    for _ in 0..MOVED_TRIES {
        let Some(row) = db.query_opt("going on with a stream", CONTINUE, &params).await? else { return Ok(None) };
        let chunks: i64 = row.at("chunks")?;
        if let Some(generation) = row.at::<Option<i32>>("generation")? {
            return Ok(Some(Continued::Yes(generation, row.at("next")?)));
        }
        if seq.is_some_and(|seq| seq > chunks) {
            return Ok(Some(Continued::Short(chunks)));
        }
    }
    Ok(None)
}

/// Notifies readers. Returns false if nobody reads these runs elsewhere.
pub(crate) async fn tell(db: &Database, tell: &Tell) -> Result<bool> {
    const SQL: &str = sql!("tell_readers", "tell_readers");
    Ok(!db.query("telling the readers of streams", SQL, &tell.params()).await?.is_empty())
}

/// Records that this pod has readers of these runs, so that their owners notify it.
pub(crate) async fn enter_readers(session: &Session, own: Incarnation, runs: &[RunId]) -> Result<()> {
    let (own, runs) = (own.as_uuid(), runs.iter().map(|run| run.as_uuid()).collect::<Vec<_>>());
    let params: [Param<'_>; 2] = [(&own, Type::UUID), (&runs, Type::UUID_ARRAY)];
    session.query("registering readers of streams", sql!("enter_readers"), &params).await.map(drop)
}

/// Deletes the rows of this pod for these runs, because nobody reads them here any more.
pub(crate) async fn leave_readers(session: &Session, own: Incarnation, runs: &[RunId]) -> Result<()> {
    let (own, runs) = (own.as_uuid(), runs.iter().map(|run| run.as_uuid()).collect::<Vec<_>>());
    let params: [Param<'_>; 2] = [(&own, Type::UUID), (&runs, Type::UUID_ARRAY)];
    session.query("deleting readers of streams", sql!("leave_readers"), &params).await.map(drop)
}

/// Deletes the rows of readers that have gone without deleting them, and all rows of the pod `own`: at most `most`.
/// Returns how many were deleted.
pub(crate) async fn clean_readers(session: &Session, own: Option<Incarnation>, most: usize) -> Result<usize> {
    let (own, most) = (own.map(|own| own.as_uuid()), i64::try_from(most).unwrap_or(i64::MAX));
    let params: [Param<'_>; 2] = [(&own, Type::UUID), (&most, Type::INT8)];
    Ok(session.query("deleting readers of streams that have gone", sql!("clean_readers"), &params).await?.len())
}

/// LISTENs for the notifications on a dedicated session. The session holds no lock, so it needs no lease.
pub(crate) async fn listen(session: &Session) -> Result<()> {
    let channel = quote_identifier(&session.schema().stream_channel());
    let sql = format!("SET idle_session_timeout = 0; LISTEN {channel}");
    session.execute_batch("listening for chunks", &sql).await
}

/// One chunk, as readers get it.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) seq: i64,
    pub(crate) fence: Fence,
    pub(crate) body: Arc<str>,
}

/// The answer of one query to a reader.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) state: String,
    pub(crate) fence: Fence,
    /// The beginning of the run's error, if the run has ended and has one.
    pub(crate) error: Option<Arc<str>>,
    pub(crate) facts: Facts,
    /// The next chunks from the reader's position on, if that is still a position of this stream.
    pub(crate) chunks: Vec<Chunk>,
}

/// Reads the next chunks for each of the readers at these positions, in one snapshot. `None`: there is no such run.
/// Reads at most `bytes` bytes for all of them; the first chunk of each does not count.
pub(crate) async fn pages(db: &Database, wanted: &[(RunId, Position)], bytes: i64) -> Result<Vec<Option<Page>>> {
    let of = |f: fn(&Position) -> i32| wanted.iter().map(|(_, p)| f(p)).collect::<Vec<_>>();
    let ids: Vec<Uuid> = wanted.iter().map(|(run_id, _)| run_id.as_uuid()).collect();
    let (generations, resets) = (of(|p| p.generation), of(|p| p.resets));
    let next: Vec<i64> = wanted.iter().map(|(_, p)| p.next).collect();
    let fences: Vec<i64> = wanted.iter().map(|(_, p)| p.fence).collect();
    let readers = i64::try_from(wanted.len().max(1)).unwrap_or(i64::MAX);
    let bytes = PAGE_BYTES.min(bytes / readers);
    let params: [&(dyn ToSql + Sync); 8] =
        [&ids, &generations, &resets, &next, &fences, &PAGE_CHUNKS, &bytes, &ERROR_READ];
    let mut pages = Vec::new();
    pages.resize_with(wanted.len(), || None);
    for row in &db.query("reading streams", READ, &params).await? {
        if let Some(page) = usize::try_from(row.at::<i64>("nth")? - 1).ok().and_then(|nth| pages.get_mut(nth)) {
            *page = Some(read_page(row)?);
        }
    }
    Ok(pages)
}

fn read_page(row: &Row) -> Result<Page> {
    let facts = Facts {
        generation: row.at("generation")?,
        resets: row.at("resets")?,
        cut_from: row.at("cut_from")?,
        differs_from: row.at("differs_from")?,
        next: row.at("next")?,
    };
    let seqs = row.at::<Option<Vec<i64>>>("seqs")?.unwrap_or_default();
    let fences = row.at::<Option<Vec<i64>>>("fences")?.unwrap_or_default();
    let bodies = row.at::<Option<Vec<&str>>>("bodies")?.unwrap_or_default();
    let chunk = |((seq, fence), body): ((i64, i64), &str)| Chunk { seq, fence: fence.into(), body: body.into() };
    let mut chunks: Vec<Chunk> = seqs.into_iter().zip(fences).zip(bodies).map(chunk).collect();
    // After a chunk that has changed, no further chunk is returned.
    if facts.differs_from.is_some() {
        chunks.clear();
    }
    let error = row.at::<Option<&str>>("error")?.map(|error| beginning(error).into());
    Ok(Page { state: row.at("state")?, fence: row.at::<i64>("fence")?.into(), error, facts, chunks })
}
