-- Starts a run that nobody owns, with the kind, key and input of one that has ended, and notifies every pod. It may move
-- if that one might. The input does not pass through the client, so every digit of it stays the same.
--
-- Arguments:
--   ended   uuid  the run that has ended
--   run_id  uuid  the new run
--   trace   text  the trace that the new run belongs to
--
-- Returns a row if the new run was inserted. No row: there is no such ended run, or its key is taken.
WITH
  run AS (
    INSERT INTO :"schema".studio_runs (run_id, kind, key, input, movable, traceparent)
    SELECT :'run_id'::uuid, r.kind, r.key, r.input, r.movable, :'trace'::text
      FROM :"schema".studio_runs r
     WHERE r.run_id = :'ended'::uuid
       AND r.state <> 'running'
    ON CONFLICT DO NOTHING
    RETURNING run_id
  )
-- This is only a hint (L11). Without it, the next recovery pass of any pod finds the run (L6).
SELECT pg_notify(:"schema".studio_channel(), 'recover') AS told
  FROM run;
