-- A pod can be cordoned: it keeps its runs and gets no new ones. A run can say that it may move to a less busy pod.
--
-- A cordon belongs to the process. It is in the row of the pod, so a pod that lost its sessions and comes back finds it there. A
-- process that registers again, because it gave itself up or was buried while it lived, takes its cordon along. The next process
-- of the name begins without one: it is the one that an operator waits for, and a forgotten cordon would keep work from it.

SET LOCAL search_path = pg_catalog, pg_temp;

-- Older pods start and claim without a look at the first column, and write no other value than the default into the second.
-- The roster is locked before the runs, as claims and starts lock them: none of these can hold one and wait for the other.
-- A recovery pass reads them the other way round. If it meets this, this gives up after its lock_timeout, and is tried again.
ALTER TABLE @.studio_pods ADD COLUMN cordoned_by text;
COMMENT ON COLUMN @.studio_pods.cordoned_by IS 'The role that cordoned the pod: it keeps its runs, and starts and claims no others. NULL: it is not cordoned. studio_cordon and studio_uncordon write it; a new process of the name begins with NULL.';

ALTER TABLE @.studio_runs ADD COLUMN movable boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN @.studio_runs.movable IS 'True: a pod with more than its share of the runs may ask this run to yield, so that a less busy pod goes on with it. Its starter says so.';

COMMENT ON COLUMN @.studio_run_attempts.reason IS 'succeeded, failed, cancelled, yielded; moved (its pod had more than its share and asked it to yield); adopted (its own pod took it up again); or why its owner ended, as in studio_pod_sessions.reason.';

CREATE FUNCTION @.studio_cordon(pod text) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    target uuid;
    cordoned_before text;
    own_channel text;
BEGIN
    PERFORM @.studio_limit_transaction(3000::integer);
    SELECT p.incarnation, p.cordoned_by, CASE WHEN p.channel_of = p.incarnation THEN p.channel END
      INTO target, cordoned_before, own_channel
      FROM @.studio_pods AS p WHERE p.pod_id = pod FOR NO KEY UPDATE;
    IF target IS NULL THEN
        RAISE EXCEPTION 'no pod named % is in the roster', pg_catalog.quote_literal(pod)
            USING ERRCODE = 'no_data_found', HINT = 'SELECT pod_id FROM studio_pod_status lists them.';
    END IF;
    IF cordoned_before IS NULL THEN
        UPDATE @.studio_pods AS p SET cordoned_by = session_user::text WHERE p.pod_id = pod AND p.incarnation = target;
        PERFORM pg_catalog.pg_notify(COALESCE(own_channel, @.studio_channel()), 'asked'::text);
        PERFORM @.studio_append_event('cordoned'::text, pod, target, session_user::text, '{}'::jsonb);
    END IF;
    RETURN target;
END $function$;
COMMENT ON FUNCTION @.studio_cordon(text) IS 'Cordons the pod of this name: it keeps its runs, and starts and claims no others. From the commit on the server refuses them. Returns the pod''s incarnation. A pod that is cordoned already stays so, and no event is written. Raises no_data_found if no pod of the name is in the roster. studio_uncordon lifts it.';

CREATE FUNCTION @.studio_uncordon(pod text) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    target uuid;
    cordoned_before text;
    own_channel text;
BEGIN
    PERFORM @.studio_limit_transaction(3000::integer);
    SELECT p.incarnation, p.cordoned_by, CASE WHEN p.channel_of = p.incarnation THEN p.channel END
      INTO target, cordoned_before, own_channel
      FROM @.studio_pods AS p WHERE p.pod_id = pod FOR NO KEY UPDATE;
    IF target IS NULL THEN
        RAISE EXCEPTION 'no pod named % is in the roster', pg_catalog.quote_literal(pod)
            USING ERRCODE = 'no_data_found', HINT = 'SELECT pod_id FROM studio_pod_status lists them.';
    END IF;
    IF cordoned_before IS NOT NULL THEN
        UPDATE @.studio_pods AS p SET cordoned_by = NULL WHERE p.pod_id = pod AND p.incarnation = target;
        PERFORM pg_catalog.pg_notify(COALESCE(own_channel, @.studio_channel()), 'asked'::text);
        PERFORM @.studio_append_event('uncordoned'::text, pod, target, session_user::text,
            pg_catalog.jsonb_build_object('cordoned_by'::text, cordoned_before));
    END IF;
    RETURN target;
END $function$;
COMMENT ON FUNCTION @.studio_uncordon(text) IS 'Lifts the cordon of the pod of this name: it starts and claims runs again. Returns the pod''s incarnation. A pod that is not cordoned stays so, and no event is written. Raises no_data_found if no pod of the name is in the roster.';

CREATE OR REPLACE VIEW @.studio_pod_status AS
WITH held AS MATERIALIZED (
    SELECT ((l.classid::bigint << 32) | l.objid::bigint) AS key, l.pid
      FROM pg_catalog.pg_locks AS l
     WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock'
       AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
), owned AS MATERIALIZED (
    SELECT r.owner_incarnation AS incarnation, pg_catalog.count(*) AS runs
      FROM @.studio_runs AS r WHERE r.state = 'running' AND r.owner_incarnation IS NOT NULL GROUP BY 1
), strangers AS MATERIALIZED (
    SELECT f.incarnation,
           pg_catalog.concat(
               pg_catalog.array_to_string((pg_catalog.array_agg(pg_catalog.concat(f.who,
                   CASE WHEN f.granted THEN ' holds' ELSE ' waits for' END, ' its ', f.key, ' lock')
                   ORDER BY f.granted DESC, f.key, f.pid))[1:4], '; '),
               CASE WHEN pg_catalog.count(*) > 4 THEN pg_catalog.concat('; and ', pg_catalog.count(*) - 4, ' more') END) AS who
      FROM @.studio_foreign_locks AS f GROUP BY 1
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
           p.cordoned_by,
           pg_catalog.clock_timestamp() - p.beat_at
               > pg_catalog.make_interval(secs => 2 * COALESCE(p.beat_ms, 10000) / 1000.0) AS lags
      FROM @.studio_pods AS p
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
            WHEN s.cordoned_by IS NOT NULL THEN 'cordoned'::text
            ELSE 'fine'::text END AS condition,
       t.reason AS wait_reason,
       t.wait_left,
       s.evicted,
       s.lags,
       f.who AS foreign_lock,
       s.cordoned_by
  FROM seen AS s
  LEFT JOIN strangers AS f ON f.incarnation = s.incarnation
  LEFT JOIN LATERAL (
        SELECT e.detail ->> 'reason' AS reason,
               GREATEST(e.at + pg_catalog.make_interval(secs => (e.detail ->> 'wait_ms')::double precision / 1000.0)
                   - pg_catalog.clock_timestamp(), pg_catalog.make_interval()) AS wait_left
          FROM @.studio_pod_events AS e
         WHERE NOT s.alive AND e.pod_id = s.pod_id AND e.incarnation = s.incarnation AND e.kind = 'held'::text
           AND e.detail -> 'session' = pg_catalog.to_jsonb(s.session)
         ORDER BY e.idx DESC
         LIMIT 1) AS t ON true
 ORDER BY s.pod_id;

COMMENT ON COLUMN @.studio_pod_status.cordoned_by IS 'The role that cordoned the pod: it keeps its runs, and starts and claims no others. NULL: it is not cordoned.';
COMMENT ON COLUMN @.studio_pod_status.condition IS 'What that comes to. fine; control_lost: its control session is being opened again. reconnecting: its connection broke and its process lives. drain_requested: somebody asked it to drain. draining: it stops cleanly. stopped: it has, and is to be buried. lagging: no beat for two beat intervals, perhaps frozen. cordoned: it keeps its runs and gets no new ones. put_out: it was put out, and is to be buried. dead: to be buried. dead_waiting: to be buried after a wait, see wait_reason.';

-- Whoever applies this, the new functions belong to the owner of studio_pod_status, as the others do.
DO $function$
DECLARE
    before text;
BEGIN
    SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) INTO before
      FROM pg_catalog.pg_class AS c
     WHERE c.oid = '@.studio_pod_status'::pg_catalog.regclass
       AND c.relowner <> (SELECT p.proowner FROM pg_catalog.pg_proc AS p
                           WHERE p.oid = '@.studio_cordon(text)'::pg_catalog.regprocedure);
    IF before IS NULL THEN
        RETURN;
    END IF;
    EXECUTE pg_catalog.concat('ALTER FUNCTION '::text, '@.studio_cordon(text)'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER FUNCTION '::text, '@.studio_uncordon(text)'::text, ' OWNER TO '::text, before);
END $function$;

-- Last, for it locks the log until the end of this transaction.
ALTER TABLE @.studio_pod_events DROP CONSTRAINT studio_pod_events_kind_check,
    ADD CONSTRAINT studio_pod_events_kind_check CHECK (kind IN
        ('joined', 'draining', 'detached', 'returned', 'suspected', 'evicted', 'buried', 'claimed', 'quarantined', 'snapshot',
         'held', 'run_failed', 'foreign_lock', 'cordoned', 'uncordoned'));

COMMENT ON COLUMN @.studio_pod_events.kind IS 'joined, draining, detached, returned, suspected, evicted, buried, claimed, quarantined; cordoned, uncordoned: an operator did so; held: its lock is free and it is not buried yet, why and for how long; run_failed: runs of a kind failed on a pod; foreign_lock: a backend that is no pod''s holds or wants a lock of the pod; snapshot: the roster as it was after this position, in place of all events up to it.';
