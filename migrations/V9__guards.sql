-- Guards: a transaction of the service's own, on its own tables, that commits only while a run is its attempt's.

CREATE FUNCTION studio_fence_check(run_id uuid, incarnation uuid, fence bigint, patience_ms integer DEFAULT 5000) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
#variable_conflict use_column
DECLARE
    most CONSTANT interval := pg_catalog.make_interval(secs => patience_ms / 1000.0);
    waits CONSTANT text := pg_catalog.current_setting('lock_timeout');
    setting text;
    value text;
    run record;
BEGIN
    -- For the rest of the transaction: a client that froze or was cut off must not hide the run from claims. A shorter
    -- limit stays.
    FOREACH setting IN ARRAY ARRAY['idle_in_transaction_session_timeout', 'statement_timeout', 'tcp_user_timeout', 'lock_timeout'] LOOP
        value := pg_catalog.current_setting(setting);
        -- One of them is shown as a bare number of milliseconds; 0 is no limit.
        value := CASE WHEN value ~ '^[0-9]+$' THEN value || 'ms' ELSE value END;
        IF value::interval NOT BETWEEN '1 microsecond'::interval AND most THEN
            PERFORM pg_catalog.set_config(setting, patience_ms::text, true);
        END IF;
    END LOOP;
    -- A claim, a checkpoint and an end lock the row FOR NO KEY UPDATE: they come wholly before this, which then sees what
    -- they made of it, or after the end of this transaction. Under an older snapshot the server refuses (40001).
    SELECT r.state, r.owner_pod, r.owner_incarnation, r.fence INTO run
      FROM studio_runs AS r WHERE r.run_id = $1 FOR SHARE OF r;
    PERFORM pg_catalog.set_config('lock_timeout', waits, true);
    IF run.state = 'running' AND run.owner_incarnation = $2 AND run.fence = $3 THEN
        RETURN;
    END IF;
    RAISE EXCEPTION 'run % is not held by % under fence %', $1, $2, $3 USING ERRCODE = 'PL001',
        DETAIL = CASE
            WHEN run.state IS NULL THEN 'The run is gone.'
            WHEN run.state <> 'running' THEN pg_catalog.concat('The run is ', run.state, '.')
            WHEN run.owner_incarnation IS NULL THEN 'Nobody owns it.'
            ELSE pg_catalog.concat('Pod ', pg_catalog.quote_literal(run.owner_pod), ' (', run.owner_incarnation,
                ') owns it under fence ', run.fence, '.')
        END,
        HINT = 'Roll back, and stop working on the run: nothing of this transaction can be committed.';
END $$;
COMMENT ON FUNCTION studio_fence_check(uuid, uuid, bigint, integer) IS 'A guard: passes if the run is running, owned by this incarnation under this fence, and keeps it so until the transaction ends. Else SQLSTATE PL001, with the owner of now as DETAIL. Limits what a client that froze can hold up: until the transaction ends, statement_timeout, idle_in_transaction_session_timeout and tcp_user_timeout are at most patience_ms, best half of the lease.';
