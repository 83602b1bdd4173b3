-- Writes a run's row for its owner without changing it, to find out whether the owner's small writes succeed. It skips
-- a row that another transaction has locked: that transaction, and not the size of a write, is why the owner waits.
--
-- Arguments:
--   run_id  uuid
--   own     uuid  the owner's incarnation
--   fence   int8
--
-- Returns a row if the write succeeded. No row: the owner is fenced, or the row is locked.
\set owned_by `cat part/owned_by.sql`
UPDATE :"schema".studio_runs r
   SET written = r.written
 WHERE r.run_id IN (
         SELECT r.run_id
           FROM :"schema".studio_runs r
          WHERE :owned_by
            FOR NO KEY UPDATE SKIP LOCKED
       )
RETURNING r.run_id;
