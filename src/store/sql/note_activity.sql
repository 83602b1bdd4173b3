-- Records in an open session when its pod last wrote samples, and its counters. A burial needs the row, so this neither
-- waits for it nor keeps it: it is a transaction of its own, and passes over a row that another transaction has locked.
--
-- Arguments:
--   own       uuid   the incarnation
--   runs      int8   how many runs it has begun
--   counters  jsonb  the application's counters: an object of numbers
WITH
  free AS MATERIALIZED (
    SELECT s.incarnation
      FROM :"schema".studio_pod_sessions s
     WHERE s.incarnation = :'own'::uuid
       AND s.ended_at IS NULL
       FOR NO KEY UPDATE SKIP LOCKED
  )
UPDATE :"schema".studio_pod_sessions s
   SET last_heartbeat_at = clock_timestamp(),
       runs_served = GREATEST(s.runs_served, :'runs'::int8),
       counters = :'counters'::jsonb
  FROM free
 WHERE s.incarnation = free.incarnation;
