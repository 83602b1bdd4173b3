-- Finds another running run with the kind and key of a run.
--
-- Arguments:
--   run_id  uuid  the run
--
-- Returns at most one row.
SELECT h.run_id
  FROM :"schema".studio_runs r
  JOIN :"schema".studio_runs h ON h.kind = r.kind AND h.key = r.key
 WHERE r.run_id = :'run_id'::uuid
   AND h.run_id <> r.run_id
   AND h.state = 'running';
