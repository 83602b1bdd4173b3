-- Compares the runs that this process works on with their rows (L5, L11).
--
-- Arguments:
--   own      uuid    the incarnation of this pod
--   run_ids  uuid[]  the runs that this process works on
--   fences   int8[]  the fence of each; NULL while the run is being started or claimed
--
-- Returns a row for each run that is not this pod's any more, with the state that it is in now (NULL: there is no
-- such row), and a row of NULLs if a run is this pod's that the process does not work on.
WITH
  known AS MATERIALIZED (
    SELECT k.run_id, k.fence
      FROM ROWS FROM (unnest(:'run_ids'::uuid[]), unnest(:'fences'::int8[])) AS k (run_id, fence)
  )
-- A run that this very attempt has ended is still its own: the reply may not have come yet.
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
