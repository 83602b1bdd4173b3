-- Lists the newest events of the log.
--
-- Arguments:
--   pod   text  only events of the pod with this name; NULL for all
--   kind  text  only events of this kind; NULL for all
--   most  int8  how many events at most
--
-- Returns a row for each event, in the order of the log: the newest is the last.
SELECT n.idx, n.at, n.kind, n.pod_id, n.incarnation, n.by_pod, n.detail
  FROM (SELECT e.idx, e.at, e.kind, e.pod_id, e.incarnation, e.by_pod, e.detail
          FROM :"schema".studio_pod_events e
         WHERE (:'pod'::text IS NULL OR e.pod_id = :'pod'::text)
           AND (:'kind'::text IS NULL OR e.kind = :'kind'::text)
         ORDER BY e.idx DESC
         LIMIT :'most'::int8) n
 ORDER BY n.idx;
