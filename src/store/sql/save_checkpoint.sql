-- Saves the checkpoint of a run for its owner. This is a numbered write of the attempt.
--
-- Arguments:
--   run_id      uuid
--   own         uuid   the owner's incarnation
--   fence       int8
--   number      int8   the number of this write among those of the attempt
--   checkpoint  jsonb
--   chunks      int8   how many chunks the run's stream has by now, NULL: as at the checkpoint before
--
-- Returns a row if the checkpoint was saved. No row: the owner is fenced, a later write of the attempt was accepted
-- first, or the stream is shorter than `chunks`.
\set owned_by `cat part/owned_by.sql`
\set stream_length `cat part/stream_length.sql`
UPDATE :"schema".studio_runs r
   SET checkpoint = :'checkpoint'::jsonb,
       checkpoint_seq = COALESCE(:'chunks'::int8, r.checkpoint_seq),
       -- A checkpoint is progress: the crashes of former owners no longer count (`protocol::poison`).
       crashes = 0,
       written = :'number'::int8
 WHERE :owned_by
   -- A write that was given up and arrives late changes nothing.
   AND r.written <= :'number'::int8
   -- If a failover lost chunks, the attempt must not go on as if they were still stored.
   AND COALESCE(:'chunks'::int8, 0) <= :stream_length
RETURNING r.run_id;
