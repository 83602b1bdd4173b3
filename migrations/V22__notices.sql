-- A notice says which rows to read, and nothing of what stands in them.
--
-- PostgreSQL has no rights on channels: every role that may connect hears each notice and can send any. So a notice is one
-- word (protocol::notices::Word), and pods act only on what the rows say.

CREATE OR REPLACE FUNCTION studio_watch(liveness_key bigint, witness_key bigint, slice_ms integer, witness_ms integer,
                                        OUT answer text, OUT roster_version bigint)
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
DECLARE
    callers CONSTANT text := pg_catalog.current_setting('lock_timeout'::text);
BEGIN
    answer := 'held'::text;
    BEGIN
        PERFORM pg_catalog.set_config('lock_timeout'::text, slice_ms::text, true);
        PERFORM pg_catalog.pg_advisory_xact_lock(liveness_key);
        answer := 'liveness'::text;
        -- A block of its own: the time-out of this wait must not give back the lock that was just granted.
        BEGIN
            PERFORM pg_catalog.set_config('lock_timeout'::text, witness_ms::text, true);
            PERFORM pg_catalog.pg_advisory_xact_lock(witness_key);
            answer := 'both'::text;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    EXCEPTION WHEN lock_not_available THEN
        NULL;
    END;
    -- Before the notification, which makes the commit wait behind every other one.
    PERFORM pg_catalog.set_config('lock_timeout'::text, callers, true);
    -- Every pod is told before anybody acts on it: if the burier freezes, the others look soon and not at their next sweep.
    -- The statement that was granted the lock sends it itself, since a frozen client sends nothing more.
    IF answer <> 'held'::text THEN
        PERFORM pg_catalog.pg_notify(studio_channel(), 'free'::text);
    END IF;
    SELECT COALESCE(pg_catalog.max(e.idx), 0::bigint) INTO roster_version FROM studio_pod_events AS e;
END $$;
COMMENT ON FUNCTION studio_watch(bigint, bigint, integer, integer) IS 'One slice of the watch on a peer: held (still alive), liveness (its liveness lock came free), both (its witness too); that one came free is told to every pod, not which. Also the roster''s version, the last event''s idx. Keeps no lock.';

CREATE OR REPLACE FUNCTION studio_append_event(kind text, pod_id text, incarnation uuid, by_pod text, detail jsonb) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
DECLARE
    appended bigint;
BEGIN
    -- Appends are serialised until commit, so that idx rises in commit order and no reader can skip one. Call it
    -- as the last statement before COMMIT, sent together with it.
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(pg_catalog.current_schema(), 2));
    INSERT INTO studio_pod_events (kind, pod_id, incarnation, by_pod, detail)
        VALUES ($1, $2, $3, $4, $5) RETURNING idx INTO appended;
    -- Pods act on no event of the first kinds.
    PERFORM pg_catalog.pg_notify(studio_channel(),
        CASE WHEN $1 IN ('claimed'::text, 'detached'::text, 'held'::text) THEN 'log'::text ELSE 'roster'::text END);
    RETURN appended;
END $$;
COMMENT ON FUNCTION studio_append_event(text, text, uuid, text, jsonb) IS 'Appends to studio_pod_events and tells every pod that there is something to read. The last statement of its transaction.';

CREATE OR REPLACE FUNCTION studio_drain(pod text) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
DECLARE
    asked uuid;
BEGIN
    UPDATE studio_pods AS p SET drain_requested = COALESCE(p.drain_requested, session_user::text)
        WHERE p.pod_id = pod RETURNING p.incarnation INTO asked;
    IF asked IS NULL THEN
        RAISE EXCEPTION 'no pod named % is in the roster', pg_catalog.quote_literal(pod)
            USING ERRCODE = 'no_data_found', HINT = 'SELECT pod_id FROM studio_pod_status lists them.';
    END IF;
    PERFORM pg_catalog.pg_notify(studio_channel(), 'asked'::text);
    RETURN asked;
END $$;

CREATE OR REPLACE FUNCTION studio_release(run uuid) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
DECLARE
    standing text;
BEGIN
    UPDATE studio_runs AS r SET state = 'running', finished_at = NULL, error = NULL, crashes = 0,
            owner_pod = NULL, owner_incarnation = NULL
        WHERE r.run_id = run AND r.state = 'quarantined';
    IF NOT FOUND THEN
        SELECT r.state INTO standing FROM studio_runs AS r WHERE r.run_id = run;
        IF standing IS NULL THEN
            RAISE EXCEPTION 'there is no run %', run USING ERRCODE = 'no_data_found';
        END IF;
        RAISE EXCEPTION 'run % is %, not quarantined', run, standing
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM pg_catalog.pg_notify(studio_channel(), 'recover'::text);
    RETURN run;
END $$;

COMMENT ON FUNCTION studio_channel() IS 'The NOTIFY channel of this schema''s pods. Each notice is one word that says which rows to read; every role that may connect can hear and send them.';
COMMENT ON FUNCTION studio_stream_channel() IS 'The channel on which pods say that runs have new chunks, by groups of runs and not by their ids. Nothing depends on it: readers look once a second anyway.';
