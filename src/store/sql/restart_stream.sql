-- Takes back all chunks of a run's stream for its owner, and begins a new generation. This is a numbered write of the
-- attempt. If the stream has no chunks, it keeps its generation.
--
-- Arguments:
--   run_id  uuid
--   own     uuid  the owner's incarnation
--   fence   int8
--   number  int8  the number of this write among those of the attempt
--
-- Returns the stream's generation. It is NULL if the row changed between this statement's snapshot and its lock: then
-- repeat the statement. No row: the owner is fenced, or a later write of the attempt was accepted first.
\set owned_by `cat part/owned_by.sql`
\set stream_length `cat part/stream_length.sql`
WITH
  had AS MATERIALIZED (
    SELECT r.written, :stream_length AS chunks
      FROM :"schema".studio_runs r
     WHERE :owned_by
       AND r.written <= :'number'::int8
  ),
  -- A repetition of the same write (`written` is its number) does not take back chunks again.
  step AS MATERIALIZED (
    SELECT h.written,
           h.chunks,
           CASE WHEN h.chunks > 0 AND h.written < :'number'::int8 THEN 1 ELSE 0 END AS one
      FROM had h
  ),
  mine AS (
    UPDATE :"schema".studio_runs r
       SET written = :'number'::int8,
           stream_generation = r.stream_generation + h.one,
           checkpoint_seq = CASE WHEN h.written < :'number'::int8 THEN 0 ELSE r.checkpoint_seq END,
           stream_resets = r.stream_resets + h.one,
           stream_furthest = GREATEST(r.stream_furthest, h.chunks)
      FROM step h
     WHERE :owned_by
       AND r.written <= :'number'::int8
       -- The row has not changed since `had` read it.
       AND r.written = h.written
    RETURNING r.run_id, r.fence, r.stream_generation, r.stream_resets, h.one
  ),
  purged AS (
    DELETE FROM :"schema".studio_run_chunks c
     USING mine m
     WHERE c.run_id = m.run_id AND m.one = 1
  ),
  -- Readers that have the chunks read this.
  noted AS (
    INSERT INTO :"schema".studio_run_resets (run_id, reset, generation, from_seq, fence)
    SELECT m.run_id, m.stream_resets, m.stream_generation, 0, m.fence
      FROM mine m
     WHERE m.one = 1
  )
SELECT m.stream_generation AS generation
  FROM had h
  LEFT JOIN mine m ON true;
