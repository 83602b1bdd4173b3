-- Reads the event index of this pod, and of each peer that holds both of its locks. A peer that holds only one of them
-- is reconnecting a session, and does not count as stalled. Rows of dead pods, of which there can be many, are not
-- returned.
--
-- Arguments:
--   own  uuid  the incarnation of this pod
--
-- Returns a row for each such peer, and one for this pod if it is in the roster.
\set advisory_lock `cat part/advisory_lock.sql`
\set lock_key `cat part/lock_key.sql`
WITH
  held AS MATERIALIZED (
    SELECT :lock_key AS key, l.pid
      FROM pg_locks l
     WHERE :advisory_lock
       AND l.granted
       AND l.mode = 'ExclusiveLock'
  )
SELECT p.incarnation, p.event_index, p.standing, p.beat_ms
  FROM :"schema".studio_pods p
  JOIN held h ON h.key = p.lock_key AND h.pid = p.liveness_pid
  JOIN held w ON w.key = p.witness_key AND w.pid = p.control_pid
 WHERE p.state = 'active'
   AND p.incarnation <> :'own'::uuid
UNION ALL
SELECT p.incarnation, p.event_index, p.standing, p.beat_ms
  FROM :"schema".studio_pods p
 WHERE p.incarnation = :'own'::uuid;
