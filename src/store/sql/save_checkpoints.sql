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
-- Returns a row for each write that was made, with its number `nth` from 1 on, and for each whose owner no longer has
-- the run; `is_made` tells them apart. No row: another transaction has locked the run, a later write of the attempt was
-- made, or the stream is shorter than `chunks`.
\set owned_by_each `cat part/owned_by_each.sql`
\set stream_length `cat part/stream_length.sql`
\set looked `cat part/looked.sql`
\set lost `cat part/lost.sql`
WITH
  writes AS MATERIALIZED (
    SELECT w.run_id, w.owner, w.fence, w.number, w.checkpoint, w.chunks, w.nth
      FROM ROWS FROM (unnest(:'run_ids'::uuid[]), unnest(:'owners'::uuid[]), unnest(:'fences'::int8[]),
                      unnest(:'numbers'::int8[]), unnest(:'checkpoints'::jsonb[]), unnest(:'chunks'::int8[]))
           WITH ORDINALITY AS w (run_id, owner, fence, number, checkpoint, chunks, nth)
     -- As many as there are. The server takes a limit for few rows, and looks each run up by its key.
     LIMIT cardinality(:'run_ids'::uuid[])
  ),
  :looked,
  saved AS (
    UPDATE :"schema".studio_runs r
       SET checkpoint = w.checkpoint,
           checkpoint_seq = COALESCE(w.chunks, r.checkpoint_seq),
           -- A checkpoint is progress: the crashes of former owners no longer count (`protocol::poison`).
           crashes = 0,
           written = w.number
      FROM looked w
     WHERE w.is_held
       AND :owned_by_each
    RETURNING w.nth
  )
SELECT nth, true AS is_made
  FROM saved
 UNION ALL
:lost;
