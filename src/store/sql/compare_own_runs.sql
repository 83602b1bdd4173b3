-- Compares the runs that this process executes with their rows (L5, L11).
--
-- Arguments:
--   own      uuid    the incarnation of this pod
--   run_ids  uuid[]  the runs that this process executes
--   fences   int8[]  the fence of each; NULL while the run is being started or claimed
--
-- Returns a row for each run that this pod has lost, with the run's state now (NULL: there is no such row). Returns one
-- more row, of NULLs, if this pod owns a run that the process does not execute.
WITH
  known AS MATERIALIZED (
    SELECT k.run_id, k.fence
      FROM ROWS FROM (unnest(:'run_ids'::uuid[]), unnest(:'fences'::int8[])) AS k (run_id, fence)
  )
-- A run that this very attempt has ended is not lost: the reply may not have come yet.
(SELECT k.run_id, k.fence, r.state
   FROM known k
   LEFT JOIN :"schema".studio_runs r ON r.run_id = k.run_id
  WHERE k.fence IS NOT NULL
    AND (r.owner_incarnation = :'own'::uuid
         AND r.fence = k.fence
         AND r.state IN ('running', 'succeeded', 'failed')) IS NOT TRUE)
UNION ALL
(SELECT NULL::uuid, NULL::int8, NULL::text
   FROM :"schema".studio_runs r
  WHERE r.state = 'running'
    AND r.owner_incarnation = :'own'::uuid
    AND NOT EXISTS (SELECT FROM known k WHERE k.run_id = r.run_id)
  LIMIT 1);
