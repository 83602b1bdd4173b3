-- Reads the event index of this pod, and of each of some peers whose locks are both held. A peer that holds only one of
-- them is reconnecting a session, and does not count as stalled. A dead peer holds none.
--
-- A lock is held if a shared lock on its key is refused. pg_locks would also say by whom, but reading it costs as much
-- as all sessions of the server have locks.
--
-- Arguments:
--   own    uuid    the incarnation of this pod
--   peers  uuid[]  the incarnations of the peers
--
-- Returns a row for each such peer, and one for this pod if it is in the roster.
WITH
  peers AS MATERIALIZED (
    SELECT p.incarnation, p.event_index, p.standing, p.beat_ms, p.lock_key, p.witness_key
      FROM :"schema".studio_pods p
     WHERE p.incarnation = ANY (:'peers'::uuid[])
       AND p.state = 'active'
  )
SELECT p.incarnation, p.event_index, p.standing, p.beat_ms
  FROM peers p
 WHERE NOT pg_try_advisory_xact_lock_shared(p.lock_key)
   AND NOT pg_try_advisory_xact_lock_shared(p.witness_key)
UNION ALL
SELECT p.incarnation, p.event_index, p.standing, p.beat_ms
  FROM :"schema".studio_pods p
 WHERE p.incarnation = :'own'::uuid;
