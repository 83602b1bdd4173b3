-- Runs on a caller's connection as well, under the caller's search_path. So each operator, function and type is named
-- with its schema, and each literal has a type.
--
-- Starts a run that nobody owns. A pod with a handler and room claims it.
--
-- Arguments:
--   run_id   uuid   the new run
--   kind     text
--   key      text   NULL for none; at most one running run of a kind has it
--   input    jsonb
--   told     text   the channel that is notified when the transaction commits; NULL: none
--   word     text   the notice
--   movable  bool   whether it may move to a less busy pod
--   trace    text   the trace that it belongs to, as W3C Trace Context writes it
--
-- Returns a row if the run was inserted. No row: a run with this id, or a running one with this key, exists.
WITH
  run AS (
    INSERT INTO :"schema".studio_runs (run_id, kind, key, input, movable, traceparent)
    VALUES (:'run_id'::pg_catalog.uuid, :'kind'::pg_catalog.text, :'key'::pg_catalog.text, :'input'::pg_catalog.jsonb,
            :'movable'::pg_catalog.bool, :'trace'::pg_catalog.text)
    ON CONFLICT DO NOTHING
    RETURNING run_id
  )
-- This is only a hint (L11). Without it, the next recovery pass of any pod finds the run (L6).
SELECT CASE WHEN :'told'::pg_catalog.text IS NOT NULL
            THEN pg_catalog.pg_notify(:'told'::pg_catalog.text, :'word'::pg_catalog.text)
       END AS told
  FROM run;
