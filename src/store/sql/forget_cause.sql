-- Deletes the cause that an incarnation recorded for its own end, because it has not ended.
--
-- Arguments:
--   own  uuid  the incarnation
UPDATE :"schema".studio_pod_sessions s
   SET cause = NULL
 WHERE s.incarnation = :'own'::uuid
   AND s.ended_at IS NULL
   AND s.cause IS NOT NULL;
