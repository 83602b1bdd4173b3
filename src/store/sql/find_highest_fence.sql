-- Finds the highest fence of all runs, which reads the whole table. Fences that were set by hand are ignored: see
-- `protocol::fences`.
--
-- Arguments:
--   most  int8  higher fences were set by hand
--
-- Returns one row. `highest` is NULL if no run has a fence.
SELECT max(r.fence) AS highest
  FROM :"schema".studio_runs r
 WHERE r.fence BETWEEN 1 AND :'most'::int8;
