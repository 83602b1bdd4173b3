-- What becomes of a pod whose lock is free is told while it is waited for, and studio_pod_status says it in words.

ALTER TABLE studio_pods ADD COLUMN beat_ms integer;
COMMENT ON COLUMN studio_pods.beat_ms IS 'How often it beats at most, in milliseconds; NULL: not known, for it was built before it could say so.';

CREATE FUNCTION studio_note_waits(waits jsonb, by_pod text) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
DECLARE
    wait record;
    noted integer := 0;
BEGIN
    -- Told by whichever observer comes first. Nobody waits to tell of a wait: another has the log, so the next look tells.
    IF NOT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended(pg_catalog.current_schema(), 2::bigint)) THEN
        RETURN NULL::integer;
    END IF;
    -- Under the log's lock and by a snapshot that is younger: whoever was buried before is not in the roster any more.
    FOR wait IN
        SELECT p.pod_id, p.incarnation, p.session, w.reason, w.wait_ms, w.in_sight, w.others
          FROM pg_catalog.jsonb_to_recordset(waits) AS w(incarnation pg_catalog.uuid, session pg_catalog.int8,
                 reason pg_catalog.text, wait_ms pg_catalog.int8, in_sight pg_catalog.int8, others pg_catalog.int8)
          JOIN studio_pods AS p ON p.incarnation = w.incarnation AND p.session = w.session
         WHERE NOT EXISTS (SELECT FROM studio_pod_events AS e
                WHERE e.pod_id = p.pod_id AND e.incarnation = p.incarnation AND e.kind = 'held'::text
                  AND e.detail -> 'session' = pg_catalog.to_jsonb(p.session) AND e.detail ->> 'reason' = w.reason)
         ORDER BY p.pod_id
         LIMIT 16
    LOOP
        PERFORM studio_append_event('held'::text, wait.pod_id, wait.incarnation, by_pod, pg_catalog.jsonb_build_object(
            'reason', wait.reason, 'wait_ms', wait.wait_ms, 'session', wait.session, 'in_sight', wait.in_sight,
            'others', wait.others));
        noted := noted + 1;
    END LOOP;
    RETURN noted;
END $$;
COMMENT ON FUNCTION studio_note_waits(jsonb, text) IS 'Records that peers whose lock is free are not buried yet, why, and for how long; once for each incarnation, session and reason, at most 16 at a time. Returns how many; NULL: the log is another''s at the moment. The last statement of its transaction.';

CREATE OR REPLACE VIEW studio_pod_status AS
WITH held AS MATERIALIZED (
    SELECT ((l.classid::bigint << 32) | l.objid::bigint) AS key, l.pid
      FROM pg_catalog.pg_locks AS l
     WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock'
       AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
), owned AS MATERIALIZED (
    SELECT r.owner_incarnation AS incarnation, pg_catalog.count(*) AS runs
      FROM studio_runs AS r WHERE r.state = 'running' AND r.owner_incarnation IS NOT NULL GROUP BY 1
), seen AS (
    SELECT p.pod_id,
           p.state,
           COALESCE(h.pid = p.liveness_pid, false) AS alive,
           COALESCE(w.pid = p.control_pid, false) AS witness,
           h.pid AS holder_pid,
           a.client_addr,
           COALESCE(o.runs, 0) AS runs,
           pg_catalog.date_trunc('milliseconds', pg_catalog.clock_timestamp() - p.beat_at) AS lag,
           p.event_index,
           p.started_at,
           p.version,
           p.labels,
           p.incarnation,
           p.session,
           p.drain_requested,
           p.evicted,
           pg_catalog.clock_timestamp() - p.beat_at
               > pg_catalog.make_interval(secs => 2 * COALESCE(p.beat_ms, 10000) / 1000.0) AS lags
      FROM studio_pods AS p
      LEFT JOIN held AS h ON h.key = p.lock_key
      LEFT JOIN held AS w ON w.key = p.witness_key
      LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = h.pid
      LEFT JOIN owned AS o ON o.incarnation = p.incarnation
)
SELECT s.pod_id, s.state, s.alive, s.witness, s.holder_pid, s.client_addr, s.runs, s.lag, s.event_index, s.started_at,
       s.version, s.labels, s.incarnation, s.session, s.drain_requested,
       CASE WHEN s.evicted IS NOT NULL THEN 'put_out'::text
            WHEN NOT s.alive AND NOT s.witness THEN
                CASE WHEN s.state = 'draining' THEN 'stopped'::text
                     WHEN t.reason IS NOT NULL THEN 'dead_waiting'::text
                     ELSE 'dead'::text END
            WHEN NOT s.alive THEN 'reconnecting'::text
            WHEN s.state = 'draining' THEN 'draining'::text
            WHEN NOT s.witness THEN 'control_lost'::text
            WHEN s.drain_requested IS NOT NULL THEN 'drain_requested'::text
            WHEN s.lags THEN 'lagging'::text
            ELSE 'fine'::text END AS condition,
       t.reason AS wait_reason,
       t.wait_left,
       s.evicted,
       s.lags
  FROM seen AS s
  LEFT JOIN LATERAL (
        SELECT e.detail ->> 'reason' AS reason,
               GREATEST(e.at + pg_catalog.make_interval(secs => (e.detail ->> 'wait_ms')::double precision / 1000.0)
                   - pg_catalog.clock_timestamp(), pg_catalog.make_interval()) AS wait_left
          FROM studio_pod_events AS e
         WHERE NOT s.alive AND e.pod_id = s.pod_id AND e.incarnation = s.incarnation AND e.kind = 'held'::text
           AND e.detail -> 'session' = pg_catalog.to_jsonb(s.session)
         ORDER BY e.idx DESC
         LIMIT 1) AS t ON true
 ORDER BY s.pod_id;

COMMENT ON COLUMN studio_pod_status.condition IS 'What that comes to. fine; control_lost: its control session is being opened again. reconnecting: its connection broke and its process lives. drain_requested: somebody asked it to drain. draining: it stops cleanly. stopped: it has, and is to be buried. lagging: no beat for two beat intervals, perhaps frozen. put_out: it was put out, and is to be buried. dead: to be buried. dead_waiting: to be buried after a wait, see wait_reason.';
COMMENT ON COLUMN studio_pod_status.wait_reason IS 'Why a pod whose lock is free is not buried yet, by the event held. connection_broken: its witness lock was held. many_lost: many were lost at once. many_unknown: so many could not be looked at that many may be lost. unsettled: nobody may bury yet, for no pod has been up for settle. NULL: nobody waits.';
COMMENT ON COLUMN studio_pod_status.wait_left IS 'How long that wait still takes at most. For people; nothing is decided on it.';
COMMENT ON COLUMN studio_pod_status.evicted IS 'stalled or evicted, once it was put out; NULL otherwise.';
COMMENT ON COLUMN studio_pod_status.lags IS 'True if its event index has not moved for two of its beat intervals.';

-- Last, for it locks the log until the end of this transaction.
ALTER TABLE studio_pod_events DROP CONSTRAINT studio_pod_events_kind_check,
    ADD CONSTRAINT studio_pod_events_kind_check CHECK (kind IN
        ('joined', 'draining', 'detached', 'returned', 'suspected', 'evicted', 'buried', 'claimed', 'quarantined', 'snapshot',
         'held', 'run_failed'));

COMMENT ON COLUMN studio_pod_events.kind IS 'joined, draining, detached, returned, suspected, evicted, buried, claimed, quarantined; held: its lock is free and it is not buried yet, why and for how long; snapshot: the roster as it was after this position, in place of all events up to it.';
