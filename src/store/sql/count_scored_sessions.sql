-- Counts the sessions that scores are made from, to divide them into slices.
--
-- Arguments:
--   since  timestamptz  only sessions that ended since then, or have not ended
--   most   int8         stop at this number, of each kind
--
-- Returns one row.
SELECT (SELECT count(*) FROM (SELECT FROM :"schema".studio_pod_sessions s
                               WHERE s.ended_at IS NULL LIMIT :'most'::int8) o)
     + (SELECT count(*) FROM (SELECT FROM :"schema".studio_pod_sessions s
                               WHERE s.ended_at >= :'since'::timestamptz LIMIT :'most'::int8) e) AS sessions;
