-- Finds runs that ended long ago, a portion at a time.
--
-- Arguments:
--   in_state  text         the state of the runs
--   keep_s    float8       how long runs are kept after their end, in seconds
--   after_at  timestamptz  when the last run of the portion before ended; NULL for the first portion
--   after_id  uuid         the id of that run; the nil UUID for the first portion
--   most      int8         how many runs at most
--
-- Returns a row for each run, in the order of their ends.
SELECT r.finished_at AS ended_at, r.run_id AS id
  FROM :"schema".studio_runs r
 WHERE r.state = :'in_state'::text
   -- L8: by the server's clock.
   AND r.finished_at < now() - make_interval(secs => :'keep_s'::float8)
   -- The index serves this condition. The one below is exact.
   AND r.finished_at >= COALESCE(:'after_at'::timestamptz, '-infinity'::timestamptz)
   AND (r.finished_at, r.run_id) > (COALESCE(:'after_at'::timestamptz, '-infinity'::timestamptz), :'after_id'::uuid)
 ORDER BY r.finished_at, r.run_id
 LIMIT :'most'::int8;
