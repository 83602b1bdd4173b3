-- Reads a page of the log after a position: the events that may be alerts, and the snapshot.
--
-- Arguments:
--   after  int8  the position
--   most   int8  how many events the page has at most, those of other kinds included
--
-- Returns a row for each of these events, in the order of the log, each with the position of the page's last event
-- (NULL: there is no event after the position) and that of the log's. A page without such an event is one row without
-- `idx`.
\set alert_columns `cat part/alert_columns.sql`
WITH
  page AS MATERIALIZED (
    SELECT :alert_columns
      FROM :"schema".studio_pod_events e
     WHERE e.idx > :'after'::int8
     ORDER BY e.idx
     LIMIT :'most'::int8
  )
SELECT ends.page_end, ends.log_end, a.*
  FROM (SELECT (SELECT max(p.idx) FROM page p) AS page_end,
               COALESCE((SELECT max(l.idx) FROM :"schema".studio_pod_events l), 0) AS log_end) ends
  LEFT JOIN page a
         ON a.kind IN ('buried', 'quarantined', 'workers_inactive', 'snapshot')
         OR (a.kind = 'joined' AND a.reason IS NOT NULL)
 ORDER BY a.idx;
