-- Writes a run's row for its owner without changing it, to see whether the owner's small writes pass.
--
-- Arguments:
--   run_id  uuid
--   own     uuid  the owner's incarnation
--   fence   int8
--
-- Returns a row if the write passed. None: the owner is fenced.
\set owned_by `cat part/owned_by.sql`
UPDATE :"schema".studio_runs r
   SET written = r.written
 WHERE :owned_by
RETURNING r.run_id;
