-- Continues a run's stream from a chunk, for its owner: keeps the chunks before it and takes back the others. This is a
-- numbered write of the attempt.
--
-- Arguments:
--   run_id  uuid
--   own     uuid  the owner's incarnation
--   fence   int8
--   number  int8  the number of this write among those of the attempt
--   seq     int8  the first chunk that is taken back, NULL: none is
--
-- Returns how many chunks the stream had, and its generation and next chunk now. Those two are NULL if the stream has
-- fewer chunks than `seq`. They are also NULL if the row changed between this statement's snapshot and its lock: then
-- repeat the statement. No row: the owner is fenced, or a later write of the attempt was accepted first.
\set owned_by `cat part/owned_by.sql`
\set stream_length `cat part/stream_length.sql`
WITH
  had AS MATERIALIZED (
    SELECT r.written, :'seq'::int8 AS wish, :stream_length AS chunks
      FROM :"schema".studio_runs r
     WHERE :owned_by
       AND r.written <= :'number'::int8
  ),
  -- A repetition of the same write (`written` is its number) does not take back chunks again.
  step AS MATERIALIZED (
    SELECT h.written,
           h.chunks,
           COALESCE(h.wish, h.chunks) AS next,
           COALESCE(h.wish < h.chunks AND h.written < :'number'::int8, false) AS cut
      FROM had h
  ),
  mine AS (
    UPDATE :"schema".studio_runs r
       SET written = :'number'::int8,
           checkpoint_seq = CASE WHEN h.cut THEN LEAST(r.checkpoint_seq, h.next) ELSE r.checkpoint_seq END,
           stream_resets = r.stream_resets + CASE WHEN h.cut THEN 1 ELSE 0 END,
           stream_furthest = CASE WHEN h.cut THEN GREATEST(r.stream_furthest, h.chunks) ELSE r.stream_furthest END
      FROM step h
     WHERE :owned_by
       AND r.written <= :'number'::int8
       -- The row has not changed since `had` read it.
       AND r.written = h.written
       -- Otherwise there would be a gap.
       AND h.next <= h.chunks
    RETURNING r.run_id, r.fence, r.stream_generation, r.stream_resets, h.next, h.cut
  ),
  purged AS (
    DELETE FROM :"schema".studio_run_chunks c
     USING mine m
     WHERE c.run_id = m.run_id AND c.generation = m.stream_generation AND c.seq >= m.next AND m.cut
  ),
  -- Readers that have the chunks read this.
  noted AS (
    INSERT INTO :"schema".studio_run_resets (run_id, reset, generation, from_seq, fence)
    SELECT m.run_id, m.stream_resets, m.stream_generation, m.next, m.fence
      FROM mine m
     WHERE m.cut
  )
SELECT h.chunks, m.stream_generation AS generation, m.next
  FROM had h
  LEFT JOIN mine m ON true;
