-- Reads the state of a run, and who owns it.
--
-- Arguments:
--   run_id  uuid  the run
--
-- Returns one row, or none if there is no such run.
SELECT r.state, r.owner_pod, r.owner_incarnation, r.fence
  FROM :"schema".studio_runs r
 WHERE r.run_id = :'run_id'::uuid;
