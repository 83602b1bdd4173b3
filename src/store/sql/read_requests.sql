-- Reads what operators asked of a pod: to drain, and to take no new runs.
--
-- Arguments:
--   own  uuid  the incarnation of the pod
--
-- Returns one row, or none if the pod's row is gone. A column is NULL if nobody asked for it.
SELECT p.drain_requested, p.cordoned_by
  FROM :"schema".studio_pods p
 WHERE p.incarnation = :'own'::uuid;
