-- Appends events to the log, in order, and so tells every pod (L11). Appends are serialised until COMMIT: this is a
-- transaction's last statement, sent together with its COMMIT, so that no frozen pod holds up the log.
--
-- Arguments:
--   events  jsonb  an array of objects with the members below
--
-- Returns the position of each event.
SELECT :"schema".studio_append_event((t.e->>'kind')::text, (t.e->>'pod')::text, (t.e->>'incarnation')::uuid,
         (t.e->>'by')::text, (t.e->'detail')::jsonb) AS idx
  FROM jsonb_array_elements(:'events'::jsonb) WITH ORDINALITY AS t (e, n);
