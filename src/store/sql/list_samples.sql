-- Lists the samples of a pod.
--
-- Arguments:
--   pod    text         the pod's name
--   since  timestamptz  only samples from this time on; NULL: from 31 days before `until`, or before now
--   until  timestamptz  only samples before this time; NULL for all
--   most   int8         how many samples at most
--
-- Returns a row for each sample, the newest first.
\set sample_columns `cat part/sample_columns.sql`
SELECT :sample_columns
  FROM :"schema".studio_pod_heartbeats h
 WHERE h.pod_id = :'pod'::text
   AND h.sampled_at >= coalesce(:'since'::timestamptz, coalesce(:'until'::timestamptz, now()) - make_interval(days => 31))
   AND h.sampled_at < coalesce(:'until'::timestamptz, 'infinity')
 ORDER BY h.sampled_at DESC
 LIMIT :'most'::int8;
