-- Saves the checkpoints of several runs for their owners. Each is a numbered write of its attempt, as in
-- `save_checkpoint`.
--
-- Arguments:
--   run_ids      uuid[]   the runs, and for each:
--   owners       uuid[]     the owner's incarnation
--   fences       int8[]
--   numbers      int8[]     the number of this write among those of the attempt
--   checkpoints  jsonb[]
--   chunks       int8[]     how many chunks the run's stream has by now, NULL: as at the checkpoint before
--
-- Returns a row for each run. `is_written` is true if its checkpoint was saved. If not, `is_mine` says whether the owner
-- had the run all the same: another transaction has locked the row, or has just changed it.
\set mine `cat part/mine.sql`
\set owned_by_each `cat part/owned_by_each.sql`
\set still_mine `cat part/still_mine.sql`
\set stream_length `cat part/stream_length.sql`
WITH
  wanted AS MATERIALIZED (
    SELECT w.run_id, w.owner, w.fence, w.number, w.checkpoint, w.chunks, w.nth
      FROM ROWS FROM (unnest(:'run_ids'::uuid[]), unnest(:'owners'::uuid[]), unnest(:'fences'::int8[]),
                      unnest(:'numbers'::int8[]), unnest(:'checkpoints'::jsonb[]), unnest(:'chunks'::int8[]))
           WITH ORDINALITY AS w (run_id, owner, fence, number, checkpoint, chunks, nth)
  ),
  :mine,
  saved AS (
    UPDATE :"schema".studio_runs r
       SET checkpoint = w.checkpoint,
           checkpoint_seq = COALESCE(w.chunks, r.checkpoint_seq),
           -- A checkpoint is progress: the crashes of former owners no longer count (`protocol::poison`).
           crashes = 0,
           written = w.number
      FROM mine m
      JOIN wanted w ON w.nth = m.nth
     WHERE :owned_by_each
       -- A write that was given up and arrives late changes nothing.
       AND r.written <= w.number
       -- If a failover lost chunks, the attempt must not go on as if they were still stored.
       AND (w.chunks IS NULL
            OR w.chunks <= :stream_length)
    RETURNING r.run_id
  )
SELECT w.nth,
       s.run_id IS NOT NULL AS is_written,
       CASE WHEN s.run_id IS NULL
            THEN :still_mine
            ELSE true END AS is_mine
  FROM wanted w
  LEFT JOIN saved s ON s.run_id = w.run_id
 ORDER BY w.nth;
