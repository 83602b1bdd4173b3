-- L3: buries dead pods, while this transaction holds their locks. Deletes their rows of the roster, ends their
-- sessions, and writes the events. It is a separate statement after the probe that took the locks, so its snapshot is
-- younger than the locks.
--
-- This statement waits for no row. If another transaction has locked one of a pod's two rows, the pod is not buried
-- now, and is probed again later. Such a transaction may stay open for as long as its client likes (L12).
--
-- Arguments:
--   own      uuid         the incarnation of the burying pod
--   key      int8         its liveness key
--   pid      int4         its liveness backend
--   started  timestamptz  when that backend began
--   dead     jsonb        the burials: an array of objects with the members of `dead` below
--   by_pod   text         the name of the burying pod
--
-- Returns a row for each pod that was buried, with the recorded cause of its end. If none was buried, returns one row
-- without an incarnation. `given` is false if the burying pod could not prove that it lives.
\set advisory_lock `cat part/advisory_lock.sql`
\set lock_key `cat part/lock_key.sql`
\set open_session_is_free `cat part/open_session_is_free.sql`
WITH
  -- L2: this pod's own liveness backend holds its own key, and its incarnation is in the roster, now. The condition
  -- of `studio_holds` is written out here, because a call of that function is planned again each time.
  proof AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM :"schema".studio_pods p
                    WHERE p.incarnation = :'own'::uuid
                      AND p.liveness_pid = :'pid'::int4
                      AND p.liveness_started = :'started'::timestamptz)
       AND EXISTS (SELECT FROM pg_locks l
                    WHERE :advisory_lock
                      AND l.granted
                      AND l.mode = 'ExclusiveLock'
                      AND l.pid = :'pid'::int4
                      AND :lock_key = :'key'::int8)
       -- A pid can be reused, so the backend must also have begun at that time. If the server hides the time, the name
       -- of the session has it.
       AND EXISTS (SELECT FROM pg_stat_get_activity(:'pid'::int4) a
                    WHERE a.pid = :'pid'::int4
                      AND (a.backend_start = :'started'::timestamptz
                           OR a.application_name
                              LIKE concat('%@', (EXTRACT(EPOCH FROM :'started'::timestamptz) * 1000000)::int8)))
           AS given
  ),
  dead AS MATERIALIZED (
    SELECT d.pod_id, d.incarnation, d.session, d.draining, d.evicted, d.reason, d.cause, d.detail
      FROM jsonb_to_recordset(:'dead'::jsonb)
           AS d (pod_id text, incarnation uuid, session int8, draining bool, evicted text, reason text, cause text,
                 detail jsonb)
  ),
  -- Locks both rows of each pod, in one order, and skips a pod if another transaction has locked one of them.
  free AS MATERIALIZED (
    SELECT d.*
      FROM :"schema".studio_pods p
      JOIN dead d ON p.pod_id = d.pod_id AND p.incarnation = d.incarnation AND p.session = d.session
     CROSS JOIN proof
     WHERE proof.given
     ORDER BY p.pod_id
       FOR UPDATE OF p SKIP LOCKED
  ),
  whole AS MATERIALIZED (
    SELECT p.* FROM free p WHERE :open_session_is_free
  ),
  -- L2: the row has not changed since the probe read it. A pod that came back has another session number.
  gone AS (
    DELETE FROM :"schema".studio_pods p
     USING whole d, proof
     WHERE proof.given
       AND p.pod_id = d.pod_id
       AND p.incarnation = d.incarnation
       AND p.session = d.session
       AND (p.state = 'draining') = d.draining
       AND p.evicted IS NOT DISTINCT FROM d.evicted
    RETURNING p.pod_id, p.incarnation, d.reason, d.cause, d.detail
  ),
  -- Deletes up to 256 workers of the buried pods. More would hold up the burial; fewer would leave more to the monitor.
  -- The workers that are left do not count, because their owner is not in the roster. The monitor deletes them.
  doomed AS MATERIALIZED (
    SELECT d.worker_id
      FROM gone
     CROSS JOIN LATERAL (SELECT w.worker_id
                           FROM :"schema".studio_workers w
                          WHERE w.owner_incarnation = gone.incarnation
                          ORDER BY w.worker_id
                          LIMIT 256
                            FOR UPDATE SKIP LOCKED) d
     LIMIT 256
  ),
  cleared AS (
    DELETE FROM :"schema".studio_workers w
     USING doomed
     WHERE w.worker_id = doomed.worker_id
    RETURNING w.worker_id
  ),
  -- A cause that the pod itself recorded takes precedence.
  ended AS (
    UPDATE :"schema".studio_pod_sessions s
       SET ended_at = clock_timestamp(),
           reason = gone.reason,
           buried_by = :'by_pod'::text,
           cause = COALESCE(s.cause, gone.cause)
      FROM gone
     WHERE s.incarnation = gone.incarnation
       AND s.ended_at IS NULL
    RETURNING s.incarnation, s.cause
  ),
  -- The log comes last: appending takes its lock, which is held until COMMIT.
  first AS MATERIALIZED (
    SELECT (SELECT count(*) FROM ended) + (SELECT count(*) FROM cleared) AS rows
  ),
  logged AS MATERIALIZED (
    SELECT g.incarnation, g.cause,
           :"schema".studio_append_event('buried'::text, g.pod_id, g.incarnation, :'by_pod'::text,
             (g.detail || jsonb_build_object('cause', g.cause))::jsonb) AS idx
      FROM (SELECT gone.pod_id, gone.incarnation, gone.detail, COALESCE(ended.cause, gone.cause) AS cause
              FROM gone
              LEFT JOIN ended ON ended.incarnation = gone.incarnation
             ORDER BY gone.pod_id) g
     CROSS JOIN first
     WHERE first.rows >= 0
  )
SELECT proof.given, logged.incarnation, logged.cause
  FROM proof
  LEFT JOIN logged ON logged.idx IS NOT NULL;
