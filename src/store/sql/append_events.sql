-- Appends events to the log, in order, which also notifies every pod (L11). Appends are serialised until COMMIT. So
-- this is a transaction's last statement, and is sent together with its COMMIT: a pod that freezes cannot keep the log
-- locked.
--
-- Arguments:
--   events  jsonb  an array of objects with the members below
--
-- Returns the position of each event.
SELECT :"schema".studio_append_event((t.e->>'kind')::text, (t.e->>'pod')::text, (t.e->>'incarnation')::uuid,
         (t.e->>'by')::text, (t.e->'detail')::jsonb) AS idx
  FROM jsonb_array_elements(:'events'::jsonb) WITH ORDINALITY AS t (e, n);
