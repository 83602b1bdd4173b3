-- A stalled pod is evicted once, however many peers find it stalled at the same time.

CREATE OR REPLACE FUNCTION studio_end_backends(target uuid, stalled_at bigint, why text, by_pod text) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
DECLARE
    row studio_pods;
    ended integer;
BEGIN
    -- A pod that is dead already died of something else.
    IF NOT EXISTS (SELECT FROM studio_pods AS p WHERE p.incarnation = target
            AND (studio_holds(p.lock_key, p.liveness_pid) OR studio_holds(p.witness_key, p.control_pid))) THEN
        RETURN NULL::integer;
    END IF;
    -- Marked first, and the row is locked until commit: the pod that buries it waits for that, and finds the reason. Several
    -- peers find the same pod stalled. The first one marks it; the next would find its backends still ending. An operator
    -- may repeat an eviction.
    UPDATE studio_pods AS p SET evicted = COALESCE(p.evicted, why)
        WHERE p.incarnation = target
          AND (stalled_at IS NULL OR (p.event_index = stalled_at AND p.state = 'active'::text AND p.evicted IS NULL))
        RETURNING p.* INTO row;
    IF row.pod_id IS NULL THEN
        RETURN NULL::integer;
    END IF;
    -- The log's lock before anything that cannot be undone: a wait for the lock may fail.
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(pg_catalog.current_schema()::text, 2::bigint));
    -- By key, database and the pids in its row: a prober may hold a key for a moment, and must not be ended.
    SELECT pg_catalog.count(*) FILTER (WHERE pg_catalog.pg_terminate_backend(l.pid)) INTO ended
      FROM pg_catalog.pg_locks AS l
     WHERE l.locktype = 'advisory'::text AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock'::text
       AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
       AND ((((l.classid::bigint << 32) | l.objid::bigint) = row.lock_key AND l.pid = row.liveness_pid)
         OR (((l.classid::bigint << 32) | l.objid::bigint) = row.witness_key AND l.pid = row.control_pid));
    PERFORM studio_append_event('evicted'::text, row.pod_id, row.incarnation, by_pod,
        pg_catalog.jsonb_build_object('reason'::text, row.evicted, 'backends'::text, ended, 'event_index'::text, row.event_index));
    RETURN ended;
END $$;
