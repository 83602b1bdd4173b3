-- Describes one incarnation.
--
-- Arguments:
--   wanted  uuid  the incarnation
--
-- Returns one row, or none if it is not in the history.
SELECT s.incarnation, s.pod_id, s.began_at, s.ended_at, s.reason, s.buried_by, s.cause
  FROM :"schema".studio_pod_sessions s
 WHERE s.incarnation = :'wanted'::uuid;
