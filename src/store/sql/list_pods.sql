-- Lists the pods of the roster, each with the state of its locks. It is for people: nothing is decided on it.
--
-- Arguments:
--   pod       text  the pod's name; NULL for any
--   in_state  text  `active` or `draining`; NULL for any
--   is_alive  bool  whether its lock is held; NULL for any
--   most      int8  how many pods at most; NULL for all
--
-- Returns a row for each pod, in the order of their names. `client_addr` is NULL over a unix socket, and if the server
-- hides it from this role.
SELECT s.pod_id, s.incarnation, s.state, s.alive, s.holder_pid,
       host(s.client_addr) AS client_addr,
       s.runs, s.event_index, s.started_at, s.version, s.labels, s.witness, s.session, s.drain_requested, s.evicted,
       s.lags, s.foreign_lock, s.cordoned_by, s.wait_reason,
       (date_part('epoch', s.wait_left) * 1000)::int8 AS wait_left_ms,
       (date_part('epoch', s.lag) * 1000)::int8 AS lag_ms,
       p.lease_ms
  FROM :"schema".studio_pod_status s
  LEFT JOIN :"schema".studio_pods p ON p.incarnation = s.incarnation
 WHERE (:'pod'::text IS NULL OR s.pod_id = :'pod'::text)
   AND (:'in_state'::text IS NULL OR s.state = :'in_state'::text)
   AND (:'is_alive'::bool IS NULL OR s.alive = :'is_alive'::bool)
 ORDER BY s.pod_id
 LIMIT :'most'::int8;
