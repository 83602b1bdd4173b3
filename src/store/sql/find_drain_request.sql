-- Finds whether somebody asked a pod to drain.
--
-- Arguments:
--   own  uuid  the incarnation of the pod
--
-- Returns one row, or none if nobody did.
SELECT p.drain_requested
  FROM :"schema".studio_pods p
 WHERE p.incarnation = :'own'::uuid
   AND p.drain_requested IS NOT NULL;
