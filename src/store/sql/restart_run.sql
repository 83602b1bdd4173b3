-- Starts a run that nobody owns with the kind, key and input of one that has ended, and tells every pod. The input
-- does not pass through the client, so it stays as it is to the last digit.
--
-- Arguments:
--   ended   uuid  the run that has ended
--   run_id  uuid  the new run
--
-- Returns a row if the new run was inserted. None: there is no such ended run, or its key is taken.
WITH
  run AS (
    INSERT INTO :"schema".studio_runs (run_id, kind, key, input)
    SELECT :'run_id'::uuid, r.kind, r.key, r.input
      FROM :"schema".studio_runs r
     WHERE r.run_id = :'ended'::uuid
       AND r.state <> 'running'
    ON CONFLICT DO NOTHING
    RETURNING run_id
  )
-- Only a hint (L11): the next recovery pass of any pod finds the run without it (L6).
SELECT pg_notify(:"schema".studio_channel(), 'recover') AS told
  FROM run;
