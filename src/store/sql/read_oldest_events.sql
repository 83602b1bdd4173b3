-- Reads the first events of the log, and for each whether it is old enough to be deleted.
--
-- Arguments:
--   keep_s  float8  how long events are kept, in seconds
--   most    int8    how many events at most
--
-- Returns a row for each event, in the order of the log.
SELECT e.idx, e.kind, e.pod_id, e.incarnation, e.detail,
       -- L8: by the server's clock.
       e.at < now() - make_interval(secs => :'keep_s'::float8) AS is_old
  FROM :"schema".studio_pod_events e
 ORDER BY e.idx
 LIMIT :'most'::int8;
