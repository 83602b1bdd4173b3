-- Lists the events of the log after a position.
--
-- Arguments:
--   after  int8  the position; 0 for the log's beginning
--   pod    text  only events of the pod with this name; NULL for all
--   kind   text  only events of this kind; NULL for all
--   most   int8  how many events at most; NULL for all
--
-- Returns a row for each event, in the order of the log.
SELECT e.idx, e.at, e.kind, e.pod_id, e.incarnation, e.by_pod, e.detail
  FROM :"schema".studio_pod_events e
 WHERE e.idx > :'after'::int8
   AND (:'pod'::text IS NULL OR e.pod_id = :'pod'::text)
   AND (:'kind'::text IS NULL OR e.kind = :'kind'::text)
 ORDER BY e.idx
 LIMIT :'most'::int8;
