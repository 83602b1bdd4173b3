-- Reads how available the fleet was: percentiles over the pods, and the mean of each hour of the week.
--
-- Arguments:
--   most    int8      how many pods at most: the first by name. It bounds the time that the statement takes
--   shares  float8[]  the percentiles, as shares of 1
--
-- Returns one row: how many pods there are; for uptime and for score, the value at each percentile, NULL without any;
-- and 168 means, for Monday 00:00 UTC first, NULL for an hour without data. The rank of a percentile is
-- round(share * (values - 1)).
WITH pods AS MATERIALIZED (
     SELECT r.score, r.uptime_pct, r.hourly_availability
       FROM :"schema".studio_pod_reliability r
      ORDER BY r.pod_id
      LIMIT :'most'::int8),
     sorted AS (
     SELECT count(*) AS pods,
            array_agg(p.score ORDER BY p.score) AS scores,
            array_agg(p.uptime_pct ORDER BY p.uptime_pct) FILTER (WHERE p.uptime_pct IS NOT NULL) AS uptimes
       FROM pods p),
     hours AS (
     SELECT (d.day - 1) * 24 + h.hour - 1 AS hour,
            avg(CASE WHEN jsonb_typeof(h.share) = 'number' THEN h.share::float8 END) AS mean
       FROM pods p,
            -- A row that was written by hand must not fail the whole answer.
            jsonb_array_elements(CASE WHEN jsonb_typeof(p.hourly_availability) = 'array'
                                      THEN p.hourly_availability ELSE '[]' END) WITH ORDINALITY AS d (hours, day),
            jsonb_array_elements(CASE WHEN jsonb_typeof(d.hours) = 'array' THEN d.hours ELSE '[]' END)
                WITH ORDINALITY AS h (share, hour)
      WHERE d.day <= 7 AND h.hour <= 24
      GROUP BY 1)
SELECT s.pods,
       (SELECT array_agg(s.uptimes[1 + floor(q.share * (cardinality(s.uptimes) - 1) + 0.5)::int4] ORDER BY q.place)
          FROM unnest(:'shares'::float8[]) WITH ORDINALITY AS q (share, place)) AS uptimes,
       (SELECT array_agg(s.scores[1 + floor(q.share * (cardinality(s.scores) - 1) + 0.5)::int4] ORDER BY q.place)
          FROM unnest(:'shares'::float8[]) WITH ORDINALITY AS q (share, place)) AS scores,
       (SELECT array_agg(h.mean ORDER BY n.hour)
          FROM generate_series(0, 167) AS n (hour) LEFT JOIN hours h ON h.hour = n.hour) AS hours
  FROM sorted s;
