-- Records which required source of a pod makes no progress.
--
-- Arguments:
--   own     uuid  the incarnation of the pod
--   source  text  the source; NULL: none is stuck
--
-- Returns one row, or none if the row said so before.
UPDATE :"schema".studio_pods p
   SET standing = :'source'::text
 WHERE p.incarnation = :'own'::uuid
   AND p.standing IS DISTINCT FROM :'source'::text
RETURNING p.pod_id;
