-- Who holds or wants the lock of a pod and is no pod is named.
--
-- Any role of the database can take any advisory lock. That cannot be prevented, and it keeps a starting pod from its name and
-- a dead one from being buried. A view shows it, studio_pod_status has it in a column, and pods write an event.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE VIEW @.studio_foreign_locks AS
WITH locks AS MATERIALIZED (
    -- In any mode, granted or not: a shared lock keeps a pod from being buried as well, and who waits is the next to hold it.
    SELECT ((l.classid::bigint << 32) | l.objid::bigint) AS lock_key, l.pid, l.granted, l.virtualtransaction, l.transactionid
      FROM pg_catalog.pg_locks AS l
     WHERE (l.locktype = 'advisory' AND l.objsubid = 1
            AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database()))
        -- Which transaction a prepared one is stands in the lock that it holds on itself.
        OR (l.locktype = 'transactionid' AND l.pid IS NULL AND l.granted)
), keys AS MATERIALIZED (
    SELECT p.pod_id, p.incarnation, 'liveness'::text AS key, p.lock_key FROM @.studio_pods AS p
    UNION ALL
    SELECT p.pod_id, p.incarnation, 'witness'::text, p.witness_key FROM @.studio_pods AS p
), ours AS MATERIALIZED (
    SELECT p.liveness_pid AS pid FROM @.studio_pods AS p
    UNION ALL
    SELECT p.control_pid FROM @.studio_pods AS p WHERE p.control_pid IS NOT NULL
), strangers AS (
    SELECT k.pod_id, k.incarnation, k.key, l.granted, l.pid, x.gid AS prepared,
           COALESCE(a.usename, x.owner)::text AS role,
           NULLIF(a.application_name, '') AS application,
           pg_catalog.host(a.client_addr) AS address,
           -- The server shows the start of a backend to whom it shows the address.
           a.backend_start IS NULL AS hidden
      FROM locks AS l
      JOIN keys AS k ON k.lock_key = l.lock_key
      LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
      LEFT JOIN locks AS t
             ON l.pid IS NULL AND t.transactionid IS NOT NULL AND t.virtualtransaction = l.virtualtransaction
      LEFT JOIN pg_catalog.pg_prepared_xacts AS x ON x.transaction = t.transactionid
     -- Sessions that watch, begin or return are in no row yet. One that has ended since the locks were read is nobody's.
     WHERE CASE WHEN l.pid IS NULL THEN true ELSE a.pid IS NOT NULL AND a.application_name NOT LIKE 'podlock/%' END
       AND NOT EXISTS (SELECT FROM ours AS o WHERE o.pid = l.pid)
)
SELECT s.pod_id, s.incarnation, s.key, s.granted, s.pid, s.role, s.application, s.address, s.prepared,
       CASE WHEN s.pid IS NULL
            THEN pg_catalog.format('prepared transaction %L of role %s', s.prepared, COALESCE(s.role, '?'))
            ELSE pg_catalog.format('server process %s (role %s, application %s, from %s)', s.pid, COALESCE(s.role, '?'),
                     COALESCE(s.application, '?'),
                     CASE WHEN s.address IS NOT NULL THEN s.address
                          WHEN s.hidden THEN 'an address that is hidden' ELSE 'a local socket' END)
            END AS who
  FROM strangers AS s;

COMMENT ON VIEW   @.studio_foreign_locks IS 'Backends and prepared transactions that hold or want a lock of a pod of the roster and are no pod''s. A pod''s backends are in its row; podlock''s other sessions are told by their application_name, podlock/..., which anybody can set: whoever forges it is not here. SELECT pg_terminate_backend(pid), or ROLLBACK PREPARED, ends one.';
COMMENT ON COLUMN @.studio_foreign_locks.key IS 'liveness: while it is held, the pod cannot be buried, and no other can start under its name. witness: while it is held, the pod counts as one that lives, for reconnect_grace.';
COMMENT ON COLUMN @.studio_foreign_locks.granted IS 'False: it waits, and may be granted the lock when the pod ends.';
COMMENT ON COLUMN @.studio_foreign_locks.pid IS 'NULL: a prepared transaction.';
COMMENT ON COLUMN @.studio_foreign_locks.address IS 'NULL over a unix socket, and for those to whom the server does not show it: that takes pg_read_all_stats.';
COMMENT ON COLUMN @.studio_foreign_locks.who IS 'The same in words.';

-- Whoever may read studio_pod_status may read this, too.
DO $function$
DECLARE
    reader record;
BEGIN
    FOR reader IN
        SELECT DISTINCT CASE WHEN a.grantee = 0::oid THEN 'PUBLIC'::text
                             ELSE pg_catalog.format('%I'::text, pg_catalog.pg_get_userbyid(a.grantee)) END AS name
          FROM pg_catalog.pg_class AS c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS a
         WHERE c.oid = '@.studio_pod_status'::pg_catalog.regclass AND a.privilege_type = 'SELECT'::text
           AND a.grantee <> c.relowner
    LOOP
        EXECUTE pg_catalog.format('GRANT SELECT ON %s TO %s'::text, '@.studio_foreign_locks'::text, reader.name);
    END LOOP;
END $function$;

CREATE FUNCTION @.studio_note_foreign_locks(locks jsonb, by_pod text) RETURNS integer[]
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    -- Whoever takes a lock again and again does not fill the log.
    most CONSTANT bigint := 16;
    seen record;
    noted integer[] := '{}'::integer[];
BEGIN
    -- As studio_note_waits: nobody waits to tell.
    BEGIN
        LOCK TABLE @.studio_log_order IN EXCLUSIVE MODE NOWAIT;
    EXCEPTION WHEN lock_not_available THEN
        RETURN NULL::integer[];
    END;
    FOR seen IN
        SELECT p.pod_id, p.incarnation, l.nth, pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('key', l.key,
                   'granted', l.granted, 'pid', l.pid, 'role', l.role, 'application', l.application, 'address', l.address,
                   'prepared', l.prepared)) AS detail
          FROM pg_catalog.jsonb_to_recordset(locks) AS l(nth pg_catalog.int4, incarnation pg_catalog.uuid, key pg_catalog.text,
                   granted pg_catalog.bool, pid pg_catalog.int4, role pg_catalog.text, application pg_catalog.text,
                   address pg_catalog.text, prepared pg_catalog.text)
          JOIN @.studio_pods AS p ON p.incarnation = l.incarnation
         ORDER BY l.nth
         LIMIT 16
    LOOP
        CONTINUE WHEN EXISTS (SELECT FROM @.studio_pod_events AS e
                 WHERE e.pod_id = seen.pod_id AND e.incarnation = seen.incarnation AND e.kind = 'foreign_lock'::text
                   AND e.detail -> 'key' = seen.detail -> 'key' AND e.detail -> 'granted' = seen.detail -> 'granted'
                   AND e.detail -> 'pid' IS NOT DISTINCT FROM seen.detail -> 'pid'
                   AND e.detail -> 'prepared' IS NOT DISTINCT FROM seen.detail -> 'prepared')
            OR (SELECT pg_catalog.count(*) FROM @.studio_pod_events AS e
                 WHERE e.pod_id = seen.pod_id AND e.incarnation = seen.incarnation AND e.kind = 'foreign_lock'::text) >= most;
        -- Nobody is notified: no pod acts on it.
        INSERT INTO @.studio_pod_events (kind, pod_id, incarnation, by_pod, detail)
            VALUES ('foreign_lock'::text, seen.pod_id, seen.incarnation, $2, seen.detail);
        noted := noted || seen.nth;
    END LOOP;
    RETURN noted;
END $function$;
COMMENT ON FUNCTION @.studio_note_foreign_locks(jsonb, text) IS 'Records rows of studio_foreign_locks, each once for its incarnation, key, process and whether it is granted; at most 16 for an incarnation. Returns the nth of those that are new; NULL: the log is another''s at the moment. The last statement of its transaction.';

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
            ELSE 'fine'::text END AS condition,
       t.reason AS wait_reason,
       t.wait_left,
       s.evicted,
       s.lags,
       f.who AS foreign_lock
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

COMMENT ON COLUMN @.studio_pod_status.foreign_lock IS 'Who holds or wants a lock of this pod and is no pod: process, role, application and address, of four at most. See studio_foreign_locks. NULL: nobody.';

-- Whoever applies this, the new view and function belong to the owner of studio_pod_status, under whose rights that reads the
-- new view.
DO $function$
DECLARE
    before text;
BEGIN
    SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) INTO before
      FROM pg_catalog.pg_class AS c
     WHERE c.oid = '@.studio_pod_status'::pg_catalog.regclass
       AND c.relowner <> (SELECT n.relowner FROM pg_catalog.pg_class AS n
                           WHERE n.oid = '@.studio_foreign_locks'::pg_catalog.regclass);
    IF before IS NULL THEN
        RETURN;
    END IF;
    EXECUTE pg_catalog.concat('ALTER VIEW '::text, '@.studio_foreign_locks'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER FUNCTION '::text, '@.studio_note_foreign_locks(jsonb, text)'::text, ' OWNER TO '::text, before);
END $function$;

-- Last, for it locks the log until the end of this transaction.
ALTER TABLE @.studio_pod_events DROP CONSTRAINT studio_pod_events_kind_check,
    ADD CONSTRAINT studio_pod_events_kind_check CHECK (kind IN
        ('joined', 'draining', 'detached', 'returned', 'suspected', 'evicted', 'buried', 'claimed', 'quarantined', 'snapshot',
         'held', 'run_failed', 'foreign_lock'));

COMMENT ON COLUMN @.studio_pod_events.kind IS 'joined, draining, detached, returned, suspected, evicted, buried, claimed, quarantined; held: its lock is free and it is not buried yet, why and for how long; run_failed: runs of a kind failed on a pod; foreign_lock: a backend that is no pod''s holds or wants a lock of the pod; snapshot: the roster as it was after this position, in place of all events up to it.';
