-- Stores one chunk of a run for its owner, together with a checkpoint. This is a numbered write of the attempt.
--
-- Arguments:
--   run_id      uuid
--   own         uuid   the owner's incarnation
--   fence       int8
--   number      int8   the number of this write among those of the attempt
--   generation  int4   the generation of the stream
--   seq         int8   the number of the chunk
--   checkpoint  jsonb
--   body        text   the chunk
--
-- Returns a row if both are stored. No row: the owner is fenced, a later write of the attempt was accepted first, or
-- the stream is not where the attempt left it.
\set owned_by `cat part/owned_by.sql`
WITH
  mine AS (
    UPDATE :"schema".studio_runs r
       SET checkpoint = :'checkpoint'::jsonb,
           checkpoint_seq = :'seq'::int8 + 1,
           -- A checkpoint is progress: the crashes of former owners no longer count (`protocol::poison`).
           crashes = 0,
           written = :'number'::int8
     WHERE :owned_by
       -- A write that was given up and arrives late changes nothing.
       AND r.written <= :'number'::int8
       -- If a failover lost chunks, there would be a gap.
       AND r.stream_generation = :'generation'::int4
       AND :'seq'::int8 <= COALESCE((SELECT max(c.seq) + 1
                                       FROM :"schema".studio_run_chunks c
                                      WHERE c.run_id = :'run_id'::uuid AND c.generation = :'generation'::int4), 0)
    RETURNING r.run_id, r.fence, r.stream_generation
  ),
  -- An earlier try of this write may have stored the chunk.
  stored AS (
    INSERT INTO :"schema".studio_run_chunks (run_id, generation, seq, fence, body)
    SELECT m.run_id, m.stream_generation, :'seq'::int8, m.fence, :'body'::text
      FROM mine m
    ON CONFLICT DO NOTHING
  )
SELECT run_id FROM mine;
