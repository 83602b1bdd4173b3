-- Pods that run and get nowhere: told of once, and put out where the policy or an operator says so.

ALTER TABLE studio_pods ADD COLUMN evicted text,
    ADD CONSTRAINT studio_pods_evicted_check CHECK (evicted IN ('stalled', 'evicted'));
COMMENT ON COLUMN studio_pods.evicted IS 'stalled or evicted, once its backends were ended for it: the reason with which it will be buried. NULL otherwise.';

CREATE FUNCTION studio_suspect(suspect uuid, stalled_at bigint, by_pod text, looks integer) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
DECLARE
    pod text;
BEGIN
    -- Every peer comes to suspect it at about the same time: one of them writes it down.
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(pg_catalog.current_schema(), 2));
    SELECT p.pod_id INTO pod FROM studio_pods AS p WHERE p.incarnation = suspect AND p.event_index = stalled_at;
    IF pod IS NULL OR EXISTS (SELECT FROM studio_pod_events AS e WHERE e.pod_id = pod AND e.incarnation = suspect
            AND e.kind = 'suspected' AND e.detail -> 'event_index' = pg_catalog.to_jsonb(stalled_at)) THEN
        RETURN false;
    END IF;
    PERFORM studio_append_event('suspected', pod, suspect, by_pod,
        pg_catalog.jsonb_build_object('event_index', stalled_at, 'looks', looks));
    RETURN true;
END $$;
COMMENT ON FUNCTION studio_suspect(uuid, bigint, text, integer) IS 'Records that an incarnation has not moved its event index for so many looks; once for each index at which it stands still. The last statement of its transaction.';

CREATE FUNCTION studio_end_backends(target uuid, stalled_at bigint, why text, by_pod text) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
DECLARE
    row studio_pods;
    ended integer;
BEGIN
    -- One that is dead already died of something else.
    IF NOT EXISTS (SELECT FROM studio_pods AS p WHERE p.incarnation = target
            AND (studio_holds(p.lock_key, p.liveness_pid) OR studio_holds(p.witness_key, p.control_pid))) THEN
        RETURN NULL;
    END IF;
    -- Marked first, and the row kept until commit: whoever buries it waits for that, and finds the reason.
    UPDATE studio_pods AS p SET evicted = COALESCE(p.evicted, why)
        WHERE p.incarnation = target AND (stalled_at IS NULL OR (p.event_index = stalled_at AND p.state = 'active'))
        RETURNING p.* INTO row;
    IF row.pod_id IS NULL THEN
        RETURN NULL;
    END IF;
    -- The log's lock before anything that cannot be undone: a wait for it may fail.
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(pg_catalog.current_schema(), 2));
    -- By key, database and the pids in its row: a prober may hold a key for a moment, and is none of ours to end.
    SELECT pg_catalog.count(*) FILTER (WHERE pg_catalog.pg_terminate_backend(l.pid)) INTO ended
      FROM pg_catalog.pg_locks AS l
     WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock'
       AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
       AND ((((l.classid::bigint << 32) | l.objid::bigint) = row.lock_key AND l.pid = row.liveness_pid)
         OR (((l.classid::bigint << 32) | l.objid::bigint) = row.witness_key AND l.pid = row.control_pid));
    PERFORM studio_append_event('evicted', row.pod_id, row.incarnation, by_pod,
        pg_catalog.jsonb_build_object('reason', row.evicted, 'backends', ended, 'event_index', row.event_index));
    RETURN ended;
END $$;
COMMENT ON FUNCTION studio_end_backends(uuid, bigint, text, text) IS 'Ends the server''s processes that hold a pod''s two locks, which turns a hung pod into a dead one: it is buried as any other. With stalled_at, only if its event index still stands there and it does not drain. Returns how many were ended; NULL if there is no such pod, or nobody holds its locks. The last statement of its transaction.';

CREATE FUNCTION studio_evict(pod text) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
DECLARE
    target uuid;
BEGIN
    SELECT p.incarnation INTO target FROM studio_pods AS p WHERE p.pod_id = pod;
    IF target IS NULL THEN
        RAISE EXCEPTION 'no pod named % is in the roster', pg_catalog.quote_literal(pod)
            USING ERRCODE = 'no_data_found', HINT = 'SELECT pod_id FROM studio_pod_status lists them.';
    END IF;
    IF studio_end_backends(target, NULL, 'evicted', session_user::text) IS NULL THEN
        RAISE EXCEPTION 'pod % is dead already: nobody holds its locks', pg_catalog.quote_literal(pod)
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'A peer buries it; see studio_pod_status.';
    END IF;
    RETURN target;
END $$;
COMMENT ON FUNCTION studio_evict(text) IS 'Puts a pod out that runs and gets nowhere: ends its two sessions, whereupon a peer buries it and its runs go on elsewhere. Once they are claimed, its own writes find no row. Returns the incarnation that was put out.';
