-- A watch of a large fleet tells nobody that a lock came free.
--
-- Up to PostgreSQL 18, a notification wakes every session of the database that listens. In a fleet of two hundred pods
-- these were two hundred backends and pods, at the very moment at which one of them buries. So the watch notifies only
-- if its caller asks for it. If a burier of a large fleet freezes, the sweeps of the other pods find the dead one: each
-- row is probed in the sweeps of sixteen pods.
--
-- The function with four arguments, which always notifies, stays for pods of older versions.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE FUNCTION @.studio_watch(liveness_key bigint, witness_key bigint, slice_ms integer, witness_ms integer, tell boolean,
                               OUT answer text, OUT roster_version bigint)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
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
    -- The others are told before anybody acts on it: if the burier freezes, they probe soon and not at their next sweep.
    -- The statement that was granted the lock sends it itself, since a frozen client sends nothing more.
    IF tell AND answer <> 'held'::text THEN
        PERFORM pg_catalog.pg_notify(@.studio_channel(), 'free'::text);
    END IF;
    SELECT COALESCE(pg_catalog.max(e.idx), 0::bigint) INTO roster_version FROM @.studio_pod_events AS e;
END $function$;

COMMENT ON FUNCTION @.studio_watch(bigint, bigint, integer, integer, boolean) IS 'One slice of the watch on a peer: held (still alive), liveness (its liveness lock came free), both (its witness too). If tell is true, every pod is notified that a lock came free, and not which. Also the roster''s version, the last event''s idx. Keeps no lock.';
COMMENT ON FUNCTION @.studio_watch(bigint, bigint, integer, integer) IS 'The same, and it always notifies: for pods built before version 33 of the schema.';

-- Whoever applies this, the function belongs to the owner of the other one, and the same roles may call it.
DO $function$
DECLARE
    caller record;
BEGIN
    FOR caller IN
        SELECT CASE WHEN a.grantee = 0::oid THEN 'PUBLIC'::text
                    ELSE pg_catalog.format('%I'::text, pg_catalog.pg_get_userbyid(a.grantee)) END AS name
          FROM pg_catalog.pg_proc AS p CROSS JOIN LATERAL pg_catalog.aclexplode(p.proacl) AS a
         WHERE p.oid = '@.studio_watch(bigint, bigint, integer, integer)'::pg_catalog.regprocedure
           AND a.grantee <> p.proowner
    LOOP
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %s'::text,
            '@.studio_watch(bigint, bigint, integer, integer, boolean)'::text, caller.name);
    END LOOP;
    FOR caller IN
        SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(p.proowner)) AS name
          FROM pg_catalog.pg_proc AS p
         WHERE p.oid = '@.studio_watch(bigint, bigint, integer, integer)'::pg_catalog.regprocedure
           AND p.proowner <> (SELECT n.proowner FROM pg_catalog.pg_proc AS n
                               WHERE n.oid = '@.studio_watch(bigint, bigint, integer, integer, boolean)'::pg_catalog.regprocedure)
    LOOP
        EXECUTE pg_catalog.concat('ALTER FUNCTION '::text,
            '@.studio_watch(bigint, bigint, integer, integer, boolean)'::text, ' OWNER TO '::text, caller.name);
    END LOOP;
END $function$;
