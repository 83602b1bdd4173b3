-- Deletes hourly rows that are old, the oldest first.
--
-- Arguments:
--   keep_s  float8  how long they are kept, in seconds
--   most    int4    how many at most
--
-- Returns one row: how many are gone.
SELECT :"schema".studio_prune_hours(make_interval(secs => :'keep_s'::float8)::interval, :'most'::int4) AS gone;
