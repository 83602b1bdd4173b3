-- Lists how reliable the pods are. An argument that is NULL does not filter.
--
-- Arguments:
--   min_uptime    float8  the least uptime, in percent
--   min_stays_4h  float8  the least share of sessions that lasted four hours, 0 to 1
--   min_score     float8  the least score; never NULL
--   max_score     float8  the highest score; never NULL
--   after_score   float8  only rows after one in the list: the score of that row. max_score is not above it
--   after_uptime  float8  its uptime; -1 if that is unknown
--   after_id      text    its name
--   most          int8    how many rows at most
--
-- Returns a row for each pod: the highest score first, then the highest uptime, then the least name.
\set reliability_columns `cat part/reliability_columns.sql`
SELECT r.pod_id, :reliability_columns
  FROM :"schema".studio_pod_reliability r
 -- Both bounds are never NULL, so that the index on scores serves them under any plan.
 WHERE r.score >= :'min_score'::float8
   AND r.score <= :'max_score'::float8
   AND (:'min_uptime'::float8 IS NULL OR r.uptime_pct >= :'min_uptime'::float8)
   AND (:'min_stays_4h'::float8 IS NULL OR r.p_stays_4h >= :'min_stays_4h'::float8)
   AND (:'after_id'::text IS NULL
        OR r.score < :'after_score'::float8
        OR coalesce(r.uptime_pct, -1) < :'after_uptime'::float8
        OR (coalesce(r.uptime_pct, -1) = :'after_uptime'::float8 AND r.pod_id > :'after_id'::text))
 ORDER BY r.score DESC, coalesce(r.uptime_pct, -1) DESC, r.pod_id
 LIMIT :'most'::int8;
