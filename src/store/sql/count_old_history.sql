-- Counts the events and the incarnations that are old enough to be deleted.
--
-- Arguments:
--   keep_s  float8  how long events are kept, and incarnations after their end, in seconds
--
-- Returns one row.
WITH
  -- L8: by the server's clock.
  cutoff AS MATERIALIZED (
    SELECT now() - make_interval(secs => :'keep_s'::float8) AS old
  )
SELECT
  -- All events before the first young one, less one, because a snapshot replaces them.
  (SELECT GREATEST(count(*) - 1, 0)
     FROM :"schema".studio_pod_events e
    WHERE e.idx < ALL (SELECT y.idx
                         FROM :"schema".studio_pod_events y, cutoff c
                        WHERE y.at >= c.old
                        ORDER BY y.idx
                        LIMIT 1)) AS events,
  -- L6: the end of an owner is kept while a running run names the owner. The pod that claims the run reads it.
  (SELECT count(*)
     FROM :"schema".studio_pod_sessions o, cutoff c
    WHERE o.ended_at < c.old
      AND NOT EXISTS (SELECT FROM :"schema".studio_runs r
                       WHERE r.state = 'running' AND r.owner_incarnation = o.incarnation)
      AND NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = o.incarnation)) AS sessions;
