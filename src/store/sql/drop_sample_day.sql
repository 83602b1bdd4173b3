-- Drops the oldest partition of samples that are all older than `keep`, if there is one.
--
-- Arguments:
--   keep  float8  seconds, at least an hour
--
-- Returns one row: the partition that was dropped, and an older one that stays because something of the service's own
-- depends on it. NULL: none.
SELECT d.dropped, d.kept
  FROM :"schema".studio_drop_sample_day(make_interval(secs => :'keep'::float8)::interval) d;
