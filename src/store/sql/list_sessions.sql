-- Lists the incarnations that a pod's name has had.
--
-- Arguments:
--   pod     text         the pod's name
--   most    int8         how many incarnations at most
--   before  timestamptz  only incarnations that registered before this time; NULL for all
--
-- Returns a row for each incarnation, the newest first.
\set session_columns `cat part/session_columns.sql`
SELECT :session_columns
  FROM :"schema".studio_pod_sessions s
 WHERE s.pod_id = :'pod'::text
   AND s.began_at < coalesce(:'before'::timestamptz, 'infinity')
 ORDER BY s.began_at DESC, s.incarnation DESC
 LIMIT :'most'::int8;
