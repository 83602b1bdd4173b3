-- Runs on a caller's connection as well, under the caller's search_path: each operator, function and type has its
-- schema, and each literal its type.
--
-- Starts a run that nobody owns, and tells every pod. A pod with a handler and room claims it.
--
-- Arguments:
--   run_id  uuid   the new run
--   kind    text
--   key     text   NULL for none; one running run of a kind may have it
--   input   jsonb
--
-- Returns a row if the run was inserted. None: a run with this id or key is in the way.
WITH
  run AS (
    INSERT INTO :"schema".studio_runs (run_id, kind, key, input)
    VALUES (:'run_id'::pg_catalog.uuid, :'kind'::pg_catalog.text, :'key'::pg_catalog.text, :'input'::pg_catalog.jsonb)
    ON CONFLICT DO NOTHING
    RETURNING run_id
  )
-- Only a hint (L11): the next recovery pass of any pod finds the run without it (L6).
SELECT pg_catalog.pg_notify(:"schema".studio_channel(), 'recover'::pg_catalog.text) AS told
  FROM run;
