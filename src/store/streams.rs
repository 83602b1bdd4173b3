//! Statements on the streams of runs. What an owner writes names its incarnation and its fence (L5) and locks the run's
//! row in the same statement, so that nothing of a former owner comes in behind a claim.

use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::runs::Owner;
use crate::error::{Error, Result};
use crate::id::{Fence, RunId};
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::schema::quote_identifier;
use crate::pg::session::Session;
use crate::protocol::failures::{ERROR_CHARS, beginning};
use crate::protocol::stream::{Facts, Position};

/// How many chunks a reader is handed at once, and how many bytes, the first chunk apart.
const PAGE_CHUNKS: i64 = 2048;
const PAGE_BYTES: i64 = 256 * 1024;
/// The same for all readers whom one statement looks for, at most and at least: less where a look did not end in time.
pub(crate) const LOOK_BYTES: i64 = 8 * 1024 * 1024;

/// One character more than is shown, so that a cut is seen and said.
const ERROR_READ: i32 = ERROR_CHARS as i32 + 1;

/// How often a statement is repeated whose row moved on between its snapshot and its lock: by a call that was dropped while
/// it was under way.
const MOVED_TRIES: usize = 5;

/// The owner's half of a numbered write on its stream: a try of it that was given up changes nothing behind later writes,
/// and where the same write was done before (`written` is its number), nothing is taken back again.
macro_rules! own_run {
    () => {
        "r.run_id = $1 AND r.owner_incarnation = $2 AND r.fence = $3 AND r.state = 'running' AND r.written <= $4"
    };
}

/// Chunks of one run, in a row.
#[derive(Debug)]
pub(crate) struct Appended {
    pub(crate) owner: Owner,
    pub(crate) generation: i32,
    /// The attempt's last numbered write before them: where a later one was accepted, they come too late.
    pub(crate) number: i64,
    pub(crate) first_seq: i64,
    pub(crate) bodies: Vec<String>,
}

/// What became of a run's chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// They are there, once, whether it was this statement that stored them or one before whose reply was lost.
    Yes,
    /// The stream is not where this attempt left it: a failover took some of it back.
    Adrift,
    /// The run is another's by now, or its row is locked by somebody for the moment; that is not waited for.
    No,
}

/// Stores chunks of several runs of this pod, and tells readers with `tell`. Returns what became of each, in the order of
/// `chunks`.
///
/// What is there already is not stored again: a repetition changes nothing. Where the first try has not ended yet, it fails
/// on the primary key ([`is_under_way`]). An ON CONFLICT would cost as much as the rest (measured: half of the rate).
///
/// Chunks beyond all that the run ever said are progress: the crashes of former owners no longer count.
pub(crate) async fn append(db: &Database, chunks: &[Appended], tell: Option<&str>) -> Result<Vec<Stored>> {
    const SQL: &str = "WITH wanted AS MATERIALIZED ( \
           SELECT w.* FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.uuid[]), pg_catalog.unnest($2::pg_catalog.uuid[]), \
               pg_catalog.unnest($3::pg_catalog.int8[]), pg_catalog.unnest($4::pg_catalog.int4[]), \
               pg_catalog.unnest($5::pg_catalog.int8[]), pg_catalog.unnest($6::pg_catalog.int8[]), \
               pg_catalog.unnest($7::pg_catalog.int8[])) WITH ORDINALITY \
             AS w(run_id, incarnation, fence, generation, number, first, next, nth) \
         ), mine AS MATERIALIZED ( \
           SELECT r.run_id, w.nth, s.chunks, r.crashes > 0 AND w.next > r.stream_furthest AS is_progress, \
                  r.stream_generation = w.generation AND r.written <= w.number AND w.first <= s.chunks AS fits \
             FROM @.studio_runs r JOIN wanted w ON w.run_id = r.run_id CROSS JOIN LATERAL ( \
                    SELECT COALESCE(pg_catalog.max(c.seq) + 1, 0) AS chunks FROM @.studio_run_chunks c \
                     WHERE c.run_id = w.run_id AND c.generation = w.generation) AS s \
            WHERE r.state = 'running' AND r.owner_incarnation = w.incarnation AND r.fence = w.fence \
            ORDER BY r.run_id FOR SHARE OF r SKIP LOCKED \
         ), calm AS MATERIALIZED ( \
           SELECT r.run_id FROM @.studio_runs r JOIN mine m ON m.run_id = r.run_id \
            WHERE m.is_progress AND m.fits FOR NO KEY UPDATE OF r SKIP LOCKED \
         ), calmed AS ( \
           UPDATE @.studio_runs r SET crashes = 0 FROM calm c WHERE r.run_id = c.run_id \
         ), due AS MATERIALIZED ( \
           SELECT pg_catalog.array_agg(CASE WHEN m.fits THEN m.chunks ELSE 9223372036854775807 END ORDER BY w.nth) AS from_seq \
             FROM wanted w LEFT JOIN mine m ON m.nth = w.nth \
         ), stored AS ( \
           INSERT INTO @.studio_run_chunks (run_id, generation, seq, fence, body) \
           SELECT ($1::pg_catalog.uuid[])[c.nth], ($4::pg_catalog.int4[])[c.nth], c.seq, ($3::pg_catalog.int8[])[c.nth], c.body \
             FROM ROWS FROM (pg_catalog.unnest($8::pg_catalog.int4[]), pg_catalog.unnest($9::pg_catalog.int8[]), \
                             pg_catalog.unnest($10::pg_catalog.text[])) AS c(nth, seq, body) \
            WHERE c.seq >= ((SELECT d.from_seq FROM due d))[c.nth] \
         ), told AS MATERIALIZED ( \
           SELECT pg_catalog.pg_notify(@.studio_stream_channel(), $11) WHERE $11::pg_catalog.text IS NOT NULL \
         ) SELECT m.nth, m.fits, (SELECT pg_catalog.count(*) FROM told) FROM mine m";
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
    let params: [&(dyn ToSql + Sync); 11] =
        [&ids, &incarnations, &fences, &generations, &numbers, &first, &next, &nths, &seqs, &bodies, &tell];
    let rows = db.query("appending to streams", SQL, &params).await?;
    let mut stored = vec![Stored::No; chunks.len()];
    for row in &rows {
        if let Some(slot) = usize::try_from(row.at::<i64>(0)? - 1).ok().and_then(|nth| stored.get_mut(nth)) {
            *slot = if row.at(1)? { Stored::Yes } else { Stored::Adrift };
        }
    }
    Ok(stored)
}

/// Whether chunks were not stored because an earlier try of the same statement is doing so.
pub(crate) fn is_under_way(error: &Error) -> bool {
    error.sqlstate() == Some("23505")
}

/// Stores one chunk together with a checkpoint, as the attempt's write of that number. False: fenced, or the stream is not
/// where this attempt left it.
pub(crate) async fn append_with_checkpoint(
    db: &Database,
    owner: Owner,
    number: i64,
    (generation, seq): (i32, i64),
    body: &str,
    value: &serde_json::Value,
) -> Result<bool> {
    const SQL: &str = "WITH mine AS ( \
           UPDATE @.studio_runs SET checkpoint = $7, checkpoint_seq = $6::pg_catalog.int8 + 1, crashes = 0, written = $4 \
            WHERE run_id = $1 AND owner_incarnation = $2 AND fence = $3 AND state = 'running' AND written <= $4 \
              AND stream_generation = $5 AND $6 <= COALESCE((SELECT pg_catalog.max(c.seq) + 1 FROM @.studio_run_chunks c \
                WHERE c.run_id = $1 AND c.generation = $5), 0) RETURNING run_id, fence, stream_generation \
         ), stored AS ( \
           INSERT INTO @.studio_run_chunks (run_id, generation, seq, fence, body) \
           SELECT m.run_id, m.stream_generation, $6, m.fence, $8 FROM mine m ON CONFLICT DO NOTHING \
         ) SELECT run_id FROM mine";
    let (run_id, incarnation) = (owner.run_id.as_uuid(), owner.incarnation.as_uuid());
    let params: [&(dyn ToSql + Sync); 8] =
        [&run_id, &incarnation, &owner.fence.get(), &number, &generation, &seq, &value, &body];
    Ok(db.query_opt("saving a chunk and a checkpoint", SQL, &params).await?.is_some())
}

/// Takes back all that the stream has and begins a new generation, in one transaction; where it has nothing, nothing is
/// taken back and the generation stays. Returns the generation; `None`: fenced.
pub(crate) async fn restart(db: &Database, owner: Owner, number: i64) -> Result<Option<i32>> {
    const SQL: &str = concat!(
        "WITH had AS MATERIALIZED ( \
           SELECT r.written, COALESCE((SELECT pg_catalog.max(c.seq) + 1 FROM @.studio_run_chunks c \
                             WHERE c.run_id = r.run_id AND c.generation = r.stream_generation), 0) AS chunks \
             FROM @.studio_runs r WHERE ",
        own_run!(),
        "), step AS MATERIALIZED ( \
           SELECT h.written, h.chunks, CASE WHEN h.chunks > 0 AND h.written < $4 THEN 1 ELSE 0 END AS one FROM had h \
         ), mine AS ( \
           UPDATE @.studio_runs r SET written = $4, stream_generation = r.stream_generation + h.one, \
                  checkpoint_seq = CASE WHEN h.written < $4 THEN 0 ELSE r.checkpoint_seq END, \
                  stream_resets = r.stream_resets + h.one, stream_furthest = GREATEST(r.stream_furthest, h.chunks) FROM step h \
            WHERE ",
        own_run!(),
        " AND r.written = h.written \
           RETURNING r.run_id, r.fence, r.stream_generation, r.stream_resets, h.one \
         ), purged AS ( \
           DELETE FROM @.studio_run_chunks c USING mine m WHERE c.run_id = m.run_id AND m.one = 1 \
         ), noted AS ( \
           INSERT INTO @.studio_run_resets (run_id, reset, generation, from_seq, fence) \
           SELECT m.run_id, m.stream_resets, m.stream_generation, 0, m.fence FROM mine m WHERE m.one = 1 \
         ) SELECT m.stream_generation FROM had h LEFT JOIN mine m ON true"
    );
    let params: [&(dyn ToSql + Sync); 4] =
        [&owner.run_id.as_uuid(), &owner.incarnation.as_uuid(), &owner.fence.get(), &number];
    for _ in 0..MOVED_TRIES {
        match db.query_opt("restarting a stream", SQL, &params).await? {
            None => return Ok(None),
            Some(row) => {
                if let Some(generation) = row.at(0)? {
                    return Ok(Some(generation));
                }
            }
        }
    }
    Ok(None)
}

/// What became of going on from a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Continued {
    /// The stream goes on in this generation, with this chunk.
    Yes(i32, i64),
    /// The stream has only so many chunks: there would be a gap.
    Short(i64),
}

/// Keeps the chunks before `seq` and takes back the others, in one transaction; no `seq` keeps them all. `None`: fenced.
pub(crate) async fn go_on(db: &Database, owner: Owner, number: i64, seq: Option<i64>) -> Result<Option<Continued>> {
    const SQL: &str = concat!(
        "WITH had AS MATERIALIZED ( \
           SELECT r.written, $5::pg_catalog.int8 AS wish, \
                  COALESCE((SELECT pg_catalog.max(c.seq) + 1 FROM @.studio_run_chunks c \
                             WHERE c.run_id = r.run_id AND c.generation = r.stream_generation), 0) AS chunks \
             FROM @.studio_runs r WHERE ",
        own_run!(),
        "), step AS MATERIALIZED ( \
           SELECT h.written, h.chunks, COALESCE(h.wish, h.chunks) AS next, \
                  COALESCE(h.wish < h.chunks AND h.written < $4, false) AS cut FROM had h \
         ), mine AS ( \
           UPDATE @.studio_runs r SET written = $4, \
                  checkpoint_seq = CASE WHEN h.cut THEN LEAST(r.checkpoint_seq, h.next) ELSE r.checkpoint_seq END, \
                  stream_resets = r.stream_resets + CASE WHEN h.cut THEN 1 ELSE 0 END, \
                  stream_furthest = CASE WHEN h.cut THEN GREATEST(r.stream_furthest, h.chunks) ELSE r.stream_furthest END \
             FROM step h WHERE ",
        own_run!(),
        " AND r.written = h.written AND h.next <= h.chunks \
           RETURNING r.run_id, r.fence, r.stream_generation, r.stream_resets, h.next, h.cut \
         ), purged AS ( \
           DELETE FROM @.studio_run_chunks c USING mine m \
            WHERE c.run_id = m.run_id AND c.generation = m.stream_generation AND c.seq >= m.next AND m.cut \
         ), noted AS ( \
           INSERT INTO @.studio_run_resets (run_id, reset, generation, from_seq, fence) \
           SELECT m.run_id, m.stream_resets, m.stream_generation, m.next, m.fence FROM mine m WHERE m.cut \
         ) SELECT h.chunks, m.stream_generation, m.next FROM had h LEFT JOIN mine m ON true"
    );
    let params: [&(dyn ToSql + Sync); 5] =
        [&owner.run_id.as_uuid(), &owner.incarnation.as_uuid(), &owner.fence.get(), &number, &seq];
    for _ in 0..MOVED_TRIES {
        let Some(row) = db.query_opt("going on with a stream", SQL, &params).await? else { return Ok(None) };
        let chunks: i64 = row.at(0)?;
        if let Some(generation) = row.at::<Option<i32>>(1)? {
            return Ok(Some(Continued::Yes(generation, row.at(2)?)));
        }
        if seq.is_some_and(|seq| seq > chunks) {
            return Ok(Some(Continued::Short(chunks)));
        }
    }
    Ok(None)
}

/// Tells readers on every pod.
pub(crate) async fn tell(db: &Database, what: &str) -> Result<()> {
    const SQL: &str = "SELECT pg_catalog.pg_notify(@.studio_stream_channel(), $1)";
    db.query("telling the readers of streams", SQL, &[&what]).await.map(drop)
}

/// Asks for the notifications on a dedicated session. It holds no lock, so no lease need end it.
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

/// What one look shows to a reader.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) state: String,
    pub(crate) fence: Fence,
    /// Of a run that has ended and has one, the beginning of its error.
    pub(crate) error: Option<Arc<str>>,
    pub(crate) facts: Facts,
    /// The next chunks from the reader's position on, where it is still a position of this stream.
    pub(crate) chunks: Vec<Chunk>,
}

/// What comes next for each of the readers at these positions, in one snapshot; `None` where there is no such run. At most
/// so many bytes for all of them, the first chunk of each apart.
pub(crate) async fn pages(db: &Database, wanted: &[(RunId, Position)], bytes: i64) -> Result<Vec<Option<Page>>> {
    const SQL: &str = "SELECT w.nth, r.state, r.stream_generation, r.stream_resets, \
               (SELECT pg_catalog.min(s.from_seq) FROM @.studio_run_resets s WHERE s.run_id = r.run_id \
                   AND s.reset > w.resets AND s.generation = r.stream_generation) AS cut_from, \
               COALESCE((SELECT pg_catalog.max(m.seq) + 1 FROM @.studio_run_chunks m \
                          WHERE m.run_id = r.run_id AND m.generation = r.stream_generation), 0) AS next, \
               CASE WHEN w.fence <> 0 AND w.generation = r.stream_generation AND w.fence <> ( \
                        SELECT l.fence FROM @.studio_run_chunks l \
                         WHERE l.run_id = r.run_id AND l.generation = w.generation AND l.seq = w.next - 1) \
                    THEN COALESCE((SELECT pg_catalog.min(d.seq) FROM @.studio_run_chunks d \
                                    WHERE d.run_id = r.run_id AND d.generation = w.generation AND d.fence > w.fence), 0) \
               END AS differs_from, \
               c.seqs, c.fences, c.bodies, r.fence, \
               CASE WHEN r.state <> 'running' THEN pg_catalog.left(r.error, $8) END AS error \
          FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.uuid[]), pg_catalog.unnest($2::pg_catalog.int4[]), \
                          pg_catalog.unnest($3::pg_catalog.int4[]), pg_catalog.unnest($4::pg_catalog.int8[]), \
                          pg_catalog.unnest($5::pg_catalog.int8[])) \
               WITH ORDINALITY AS w(run_id, generation, resets, next, fence, nth) \
          JOIN @.studio_runs r ON r.run_id = w.run_id \
          CROSS JOIN LATERAL ( \
               SELECT pg_catalog.array_agg(b.seq) AS seqs, pg_catalog.array_agg(b.fence) AS fences, \
                      pg_catalog.array_agg(b.body) AS bodies \
                 FROM (SELECT p.seq, p.fence, p.body, \
                              pg_catalog.sum(pg_catalog.octet_length(p.body)) OVER (ORDER BY p.seq ROWS UNBOUNDED PRECEDING) \
                                - pg_catalog.octet_length(p.body) AS before \
                         FROM (SELECT k.seq, k.fence, k.body FROM @.studio_run_chunks k \
                                WHERE k.run_id = r.run_id AND k.generation = r.stream_generation AND k.seq >= w.next \
                                  AND (w.generation = 0 \
                                       OR (w.generation = r.stream_generation AND w.resets = r.stream_resets)) \
                                ORDER BY k.seq LIMIT $6) AS p) AS b \
                WHERE b.before < $7) AS c";
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
    for row in &db.query("reading streams", SQL, &params).await? {
        if let Some(page) = usize::try_from(row.at::<i64>(0)? - 1).ok().and_then(|nth| pages.get_mut(nth)) {
            *page = Some(read_page(row)?);
        }
    }
    Ok(pages)
}

fn read_page(row: &Row) -> Result<Page> {
    let facts = Facts {
        generation: row.at(2)?,
        resets: row.at(3)?,
        cut_from: row.at(4)?,
        differs_from: row.at(6)?,
        next: row.at(5)?,
    };
    let seqs = row.at::<Option<Vec<i64>>>(7)?.unwrap_or_default();
    let fences = row.at::<Option<Vec<i64>>>(8)?.unwrap_or_default();
    let bodies = row.at::<Option<Vec<&str>>>(9)?.unwrap_or_default();
    let chunk = |((seq, fence), body): ((i64, i64), &str)| Chunk { seq, fence: fence.into(), body: body.into() };
    let mut chunks: Vec<Chunk> = seqs.into_iter().zip(fences).zip(bodies).map(chunk).collect();
    // Behind what has changed, nothing is handed on.
    if facts.differs_from.is_some() {
        chunks.clear();
    }
    let error = row.at::<Option<&str>>(11)?.map(|error| beginning(error).into());
    Ok(Page { state: row.at(1)?, fence: row.at::<i64>(10)?.into(), error, facts, chunks })
}
