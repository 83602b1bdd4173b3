-- Writes a run's row for its owner without changing it, to find out whether the owner's small writes succeed.
--
-- Arguments:
--   run_id  uuid
--   own     uuid  the owner's incarnation
--   fence   int8
--
-- Returns a row if the write succeeded. No row: the owner is fenced.
\set owned_by `cat part/owned_by.sql`
UPDATE :"schema".studio_runs r
   SET written = r.written
 WHERE :owned_by
RETURNING r.run_id;
