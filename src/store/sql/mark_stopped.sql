-- Records that the clean stop of a pod is complete: it executes no run any more, and ends its sessions next (L4).
--
-- Arguments:
--   own  uuid  the incarnation of the pod
--
-- Returns one row, or none if the row is gone or was not marked as draining.
UPDATE :"schema".studio_pods p
   SET stopped = true
 WHERE p.incarnation = :'own'::uuid
   AND p.state = 'draining'
RETURNING p.pod_id;
