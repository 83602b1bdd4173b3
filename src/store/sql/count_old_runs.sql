-- Counts the runs that ended long ago.
--
-- Arguments:
--   states  text[]  the states of the runs; `running` counts none
--   keep_s  float8  how long runs are kept after their end, in seconds
--
-- Returns one row.
SELECT count(*) AS runs
  FROM :"schema".studio_runs r
 WHERE r.state = ANY (:'states'::text[])
   AND r.state <> 'running'
   AND r.finished_at < now() - make_interval(secs => :'keep_s'::float8);
