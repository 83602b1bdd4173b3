-- No time-out of these functions is in force when their statement commits.
--
-- At COMMIT a transaction that sent a notification waits for a lock of the whole cluster, which every other transaction with
-- a notification holds until its own commit is on disk. A lock_timeout of milliseconds that is still set there cancels the
-- commit, and the notification is lost. So each function puts back what it found. statement_timeout needs no such care: the
-- server stops that clock before it commits.

CREATE OR REPLACE FUNCTION studio_lock(lock_key bigint, slice_ms integer) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
DECLARE
    callers CONSTANT text := pg_catalog.current_setting('lock_timeout'::text);
    granted boolean := false;
BEGIN
    BEGIN
        PERFORM pg_catalog.set_config('lock_timeout'::text, slice_ms::text, true);
        PERFORM pg_catalog.pg_advisory_lock(lock_key);
        granted := true;
    EXCEPTION WHEN lock_not_available THEN
        granted := false;
    END;
    PERFORM pg_catalog.set_config('lock_timeout'::text, callers, true);
    RETURN granted;
END $$;

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
        PERFORM pg_catalog.pg_notify(studio_channel(),
            pg_catalog.jsonb_build_object('ask'::text, 'look'::text, 'key'::text, liveness_key)::text);
    END IF;
    SELECT COALESCE(pg_catalog.max(e.idx), 0::bigint) INTO roster_version FROM studio_pod_events AS e;
END $$;
