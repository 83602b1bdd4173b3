-- Reads the events of the log after a position, with the fields on which pods act.
--
-- Arguments:
--   after  int8  the position
--   most   int8  how many events at most
--
-- Returns a row for each event, in the order of the log.
SELECT e.idx, e.kind, e.pod_id, e.incarnation,
       e.detail->>'reason' AS reason,
       e.detail->>'run' AS run
  FROM :"schema".studio_pod_events e
 WHERE e.idx > :'after'::int8
 ORDER BY e.idx
 LIMIT :'most'::int8;
