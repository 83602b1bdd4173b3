-- Reads the events of the log after a position, with the fields on which pods act, and what an alert says.
--
-- Arguments:
--   after  int8  the position
--   most   int8  how many events at most
--
-- Returns a row for each event, in the order of the log.
\set alert_columns `cat part/alert_columns.sql`
SELECT :alert_columns
  FROM :"schema".studio_pod_events e
 WHERE e.idx > :'after'::int8
 ORDER BY e.idx
 LIMIT :'most'::int8;
