-- Stores chunks of several runs for the pod that owns them, and notifies readers on other pods.
--
-- A repetition changes nothing: chunks that are there already are not stored again. If an earlier try of the same
-- statement has not ended yet, this one fails on the primary key. An ON CONFLICT would cost as much as the rest
-- (measured: half of the rate).
--
-- Arguments:
--   run_ids      uuid[]  the runs, and for each:
--   owners       uuid[]    the owner's incarnation
--   fences       int8[]    the fence
--   generations  int4[]    the generation of the stream
--   numbers      int8[]    the attempt's last numbered write before these chunks
--   firsts       int8[]    the first of its chunks
--   nexts        int8[]    the number after its last chunk
--   nths         int4[]  the chunks: which of the runs each belongs to, from 1 on
--   seqs         int8[]    the number of each
--   bodies       text[]    the text of each
--   own          uuid    the incarnation whose own readers need no notice
--   by           text    the sender's number in the notice
--   told_runs    uuid[]  the runs whose readers are notified, if there are some, and for each:
--   told_groups  text[]    its group in the notice (`protocol::notices::group`)
--   groups_most  int4    the most groups that the notice names
--
-- Returns a row for each run that is still its owner's under its fence (L5), and whose row no other transaction has
-- locked. `fits` is true if its chunks are stored now; false if its stream is not where the attempt left it. `told` is
-- not 0 if readers were notified.
\set tell_readers `cat part/tell_readers.sql`
WITH
  wanted AS MATERIALIZED (
    SELECT w.*
      FROM ROWS FROM (unnest(:'run_ids'::uuid[]), unnest(:'owners'::uuid[]), unnest(:'fences'::int8[]),
                      unnest(:'generations'::int4[]), unnest(:'numbers'::int8[]), unnest(:'firsts'::int8[]),
                      unnest(:'nexts'::int8[])) WITH ORDINALITY
           AS w (run_id, incarnation, fence, generation, number, first, next, nth)
  ),
  -- L5: while the rows are locked, no other pod claims the runs. Skips rows that another transaction has locked (L12).
  mine AS MATERIALIZED (
    SELECT r.run_id, w.nth, s.chunks,
           -- These chunks are beyond all chunks that the run ever had.
           r.crashes > 0 AND w.next > r.stream_furthest AS is_progress,
           -- False if a later write of the attempt was accepted first, or if a failover lost chunks, so that there
           -- would be a gap.
           r.stream_generation = w.generation AND r.written <= w.number AND w.first <= s.chunks AS fits
      FROM :"schema".studio_runs r
      JOIN wanted w ON w.run_id = r.run_id
      CROSS JOIN LATERAL (
        SELECT COALESCE(max(c.seq) + 1, 0) AS chunks
          FROM :"schema".studio_run_chunks c
         WHERE c.run_id = w.run_id AND c.generation = w.generation
      ) AS s
     WHERE r.state = 'running'
       AND r.owner_incarnation = w.incarnation
       AND r.fence = w.fence
     ORDER BY r.run_id
       FOR SHARE OF r SKIP LOCKED
  ),
  -- Progress: the crashes of former owners no longer count (`protocol::poison`).
  calm AS MATERIALIZED (
    SELECT r.run_id
      FROM :"schema".studio_runs r
      JOIN mine m ON m.run_id = r.run_id
     WHERE m.is_progress AND m.fits
       FOR NO KEY UPDATE OF r SKIP LOCKED
  ),
  calmed AS (
    UPDATE :"schema".studio_runs r
       SET crashes = 0
      FROM calm c
     WHERE r.run_id = c.run_id
  ),
  -- For each run, the first chunk that is not stored yet. For a run that must store nothing, a number above all chunks.
  due AS MATERIALIZED (
    SELECT array_agg(CASE WHEN m.fits THEN m.chunks ELSE 9223372036854775807 END ORDER BY w.nth) AS from_seq
      FROM wanted w
      LEFT JOIN mine m ON m.nth = w.nth
  ),
  stored AS (
    INSERT INTO :"schema".studio_run_chunks (run_id, generation, seq, fence, body)
    SELECT (:'run_ids'::uuid[])[c.nth], (:'generations'::int4[])[c.nth], c.seq, (:'fences'::int8[])[c.nth], c.body
      FROM ROWS FROM (unnest(:'nths'::int4[]), unnest(:'seqs'::int8[]), unnest(:'bodies'::text[]))
           AS c (nth, seq, body)
     WHERE c.seq >= ((SELECT d.from_seq FROM due d))[c.nth]
  ),
  told AS MATERIALIZED (
:tell_readers
  )
SELECT m.nth,
       m.fits,
       -- The server leaves `told` out if nothing reads it. It is not run either if there is no row in `mine`.
       (SELECT count(*) FROM told) AS told
  FROM mine m;
