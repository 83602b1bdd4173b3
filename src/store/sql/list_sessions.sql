-- Lists the incarnations that a pod's name has had.
--
-- Arguments:
--   pod   text  the pod's name
--   most  int8  how many incarnations at most
--
-- Returns a row for each incarnation, the newest first.
SELECT s.incarnation, s.pod_id, s.began_at, s.ended_at, s.reason, s.buried_by, s.cause
  FROM :"schema".studio_pod_sessions s
 WHERE s.pod_id = :'pod'::text
 ORDER BY s.began_at DESC, s.incarnation DESC
 LIMIT :'most'::int8;
