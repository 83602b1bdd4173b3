-- Finds incarnations that ended long ago, a portion at a time.
--
-- Arguments:
--   keep_s    float8       how long incarnations are kept after their end, in seconds
--   after_at  timestamptz  when the last incarnation of the portion before ended; NULL for the first portion
--   after_id  uuid         that incarnation; the nil UUID for the first portion
--   most      int8         how many incarnations at most
--
-- Returns a row for each incarnation, in the order of their ends.
SELECT s.ended_at AS ended_at, s.incarnation AS id
  FROM :"schema".studio_pod_sessions s
 -- L8: by the server's clock.
 WHERE s.ended_at < now() - make_interval(secs => :'keep_s'::float8)
   -- The index serves this condition. The one below is exact.
   AND s.ended_at >= COALESCE(:'after_at'::timestamptz, '-infinity'::timestamptz)
   AND (s.ended_at, s.incarnation) > (COALESCE(:'after_at'::timestamptz, '-infinity'::timestamptz), :'after_id'::uuid)
 ORDER BY s.ended_at, s.incarnation
 LIMIT :'most'::int8;
