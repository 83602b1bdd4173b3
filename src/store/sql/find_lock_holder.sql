-- Finds who holds a key of a pod, in any mode.
--
-- Arguments:
--   key  int8  the liveness key or the witness key of a pod
--
-- Returns one row, or none if nobody holds the key. If there are several holders, the backend that is registered for
-- the key comes first, then a stranger's, then one whose name begins with `podlock/`. `pid` is NULL for a prepared
-- transaction. `is_hidden`: the server does not show this role the holder's address.
\set advisory_lock `cat part/advisory_lock.sql`
\set lock_key `cat part/lock_key.sql`
WITH
  -- The pod whose key this is, and the backend that it registered for the key.
  bearer AS MATERIALIZED (
    SELECT p.pod_id,
           CASE WHEN p.lock_key = :'key'::int8 THEN p.liveness_pid ELSE p.control_pid END AS pid
      FROM :"schema".studio_pods p
     WHERE p.lock_key = :'key'::int8 OR p.witness_key = :'key'::int8
  )
SELECT l.pid,
       host(a.client_addr) AS address,
       EXTRACT(EPOCH FROM clock_timestamp() - a.backend_start)::float8 AS age_s,
       b.pod_id AS registered,
       COALESCE(a.usename, x.owner)::text AS role,
       NULLIF(a.application_name, '') AS application,
       x.gid AS prepared,
       a.backend_start IS NULL AS is_hidden,
       COALESCE(b.pid = l.pid, false) AS is_pods
  FROM pg_locks l
  LEFT JOIN pg_stat_activity a ON a.pid = l.pid
  -- A prepared transaction has no process. The lock on its own number leads to its name.
  LEFT JOIN pg_locks t
    ON l.pid IS NULL
   AND t.pid IS NULL
   AND t.locktype = 'transactionid'
   AND t.granted
   AND t.virtualtransaction = l.virtualtransaction
  LEFT JOIN pg_prepared_xacts x ON x.transaction = t.transactionid
  LEFT JOIN bearer b ON true
 WHERE :advisory_lock
   AND l.granted
   AND :lock_key = :'key'::int8
 ORDER BY is_pods DESC, (a.application_name LIKE 'podlock/%') IS TRUE, l.pid
 LIMIT 1;
