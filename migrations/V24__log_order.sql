-- 1. The log's order, and retention's turn, are kept by locks that only roles with rights in this schema can take.
-- 2. What an operator leaves open, the server ends.
--
-- Both were advisory locks until now, which any role of the database can take and keep. An empty table of ours takes their
-- place: LOCK TABLE in this mode needs UPDATE on the table. A locked row would do as well, but each lock of a row writes to
-- it: one dead row version and WAL for each event.
--
-- The lock of the log is taken by a trigger: whoever inserts an event takes it first, whichever version of a function it
-- calls. While this version is being applied, calls of older versions are under way. They, too, are put in order, for CREATE
-- TRIGGER waits until nobody is in the middle of an insert.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE TABLE @.studio_log_order () WITH (autovacuum_enabled = false);
COMMENT ON TABLE @.studio_log_order IS 'Always empty. Who has it locked IN EXCLUSIVE MODE appends to studio_pod_events; until its transaction ends, nobody else does. So idx rises in commit order.';

CREATE TABLE @.studio_prune_order () WITH (autovacuum_enabled = false);
COMMENT ON TABLE @.studio_prune_order IS 'Always empty. Who has it locked IN EXCLUSIVE MODE prunes; one round at a time.';

-- Whoever may append may also take the lock of the log before it appends.
DO $function$
DECLARE
    appender record;
BEGIN
    FOR appender IN
        SELECT DISTINCT CASE WHEN a.grantee = 0::oid THEN 'PUBLIC'::text
                             ELSE pg_catalog.format('%I'::text, pg_catalog.pg_get_userbyid(a.grantee)) END AS name
          FROM pg_catalog.pg_class AS c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS a
         WHERE c.oid = '@.studio_pod_events'::pg_catalog.regclass AND a.privilege_type = 'INSERT'::text
           AND a.grantee <> c.relowner
    LOOP
        EXECUTE pg_catalog.format('GRANT UPDATE ON %s TO %s'::text, '@.studio_log_order'::text, appender.name);
    END LOOP;
END $function$;

CREATE FUNCTION @.studio_order_events() RETURNS trigger
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $function$
BEGIN
    LOCK TABLE @.studio_log_order IN EXCLUSIVE MODE;
    RETURN NULL::pg_catalog.record;
END $function$;
-- Whoever may execute it could hang it on a table of their own, and hold the log. A trigger that is there asks for no right.
REVOKE ALL ON FUNCTION @.studio_order_events() FROM PUBLIC;
COMMENT ON FUNCTION @.studio_order_events() IS 'Appends to studio_pod_events are serialised until commit, before they take their idx: so idx rises in commit order and no reader can skip one.';

CREATE OR REPLACE FUNCTION @.studio_append_event(kind text, pod_id text, incarnation uuid, by_pod text, detail jsonb) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    appended bigint;
BEGIN
    -- The insert locks the log until commit (studio_order_events). Call this as the last statement before COMMIT, sent together
    -- with it.
    INSERT INTO @.studio_pod_events (kind, pod_id, incarnation, by_pod, detail)
        VALUES ($1, $2, $3, $4, $5) RETURNING idx INTO appended;
    -- Pods act on no event of the first kinds.
    PERFORM pg_catalog.pg_notify(@.studio_channel(),
        CASE WHEN $1 IN ('claimed'::text, 'detached'::text, 'held'::text) THEN 'log'::text ELSE 'roster'::text END);
    RETURN appended;
END $function$;

CREATE OR REPLACE FUNCTION @.studio_suspect(suspect uuid, stalled_at bigint, by_pod text, looks integer) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    pod text;
    source text;
BEGIN
    -- All peers suspect it at about the same time: one of them writes it down.
    LOCK TABLE @.studio_log_order IN EXCLUSIVE MODE;
    SELECT p.pod_id, p.standing INTO pod, source
      FROM @.studio_pods AS p WHERE p.incarnation = suspect AND p.event_index = stalled_at;
    -- Whether it was written down before is in the snapshot, once its event is pruned.
    IF pod IS NULL OR EXISTS (SELECT FROM @.studio_pod_events AS e WHERE e.pod_id = pod AND e.incarnation = suspect
            AND e.kind = 'suspected'::text AND e.detail -> 'event_index'::text = pg_catalog.to_jsonb(stalled_at))
       OR EXISTS (SELECT FROM @.studio_pod_events AS e WHERE e.kind = 'snapshot'::text
            AND e.detail -> 'suspected'::text -> suspect::text = pg_catalog.to_jsonb(stalled_at)) THEN
        RETURN false;
    END IF;
    -- No source: the whole application stands still.
    PERFORM @.studio_append_event('suspected'::text, pod, suspect, by_pod, pg_catalog.jsonb_strip_nulls(
        pg_catalog.jsonb_build_object('event_index'::text, stalled_at, 'looks'::text, looks, 'source'::text, source)));
    RETURN true;
END $function$;

CREATE OR REPLACE FUNCTION @.studio_note_waits(waits jsonb, by_pod text) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    wait record;
    noted integer := 0;
BEGIN
    -- Told by whichever observer comes first. Nobody waits to tell of a wait: another has the log, so the next look tells.
    BEGIN
        LOCK TABLE @.studio_log_order IN EXCLUSIVE MODE NOWAIT;
    EXCEPTION WHEN lock_not_available THEN
        RETURN NULL::integer;
    END;
    -- Under the log's lock and by a snapshot that is younger: whoever was buried before is not in the roster any more.
    FOR wait IN
        SELECT p.pod_id, p.incarnation, p.session, w.reason, w.wait_ms, w.in_sight, w.others
          FROM pg_catalog.jsonb_to_recordset(waits) AS w(incarnation pg_catalog.uuid, session pg_catalog.int8,
                 reason pg_catalog.text, wait_ms pg_catalog.int8, in_sight pg_catalog.int8, others pg_catalog.int8)
          JOIN @.studio_pods AS p ON p.incarnation = w.incarnation AND p.session = w.session
         WHERE NOT EXISTS (SELECT FROM @.studio_pod_events AS e
                WHERE e.pod_id = p.pod_id AND e.incarnation = p.incarnation AND e.kind = 'held'::text
                  AND e.detail -> 'session' = pg_catalog.to_jsonb(p.session) AND e.detail ->> 'reason' = w.reason)
         ORDER BY p.pod_id
         LIMIT 16
    LOOP
        PERFORM @.studio_append_event('held'::text, wait.pod_id, wait.incarnation, by_pod, pg_catalog.jsonb_build_object(
            'reason', wait.reason, 'wait_ms', wait.wait_ms, 'session', wait.session, 'in_sight', wait.in_sight,
            'others', wait.others));
        noted := noted + 1;
    END LOOP;
    RETURN noted;
END $function$;

CREATE OR REPLACE FUNCTION @.studio_note_failures(pod_id text, incarnation uuid, kinds text[], counts bigint[], runs uuid[], errors text[])
    RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    noted integer;
BEGIN
    -- Nobody is notified. A failed run changes nothing that a
    -- pod must act on, and a NOTIFY from each pod of a failing fleet would slow every commit down. Readers of the log look
    -- once a second anyway.
    INSERT INTO @.studio_pod_events (kind, pod_id, incarnation, by_pod, detail)
    SELECT 'run_failed'::pg_catalog.text, $1, $2, $1,
           pg_catalog.jsonb_build_object('kind'::pg_catalog.text, f.kind, 'runs'::pg_catalog.text, f.count,
               'run'::pg_catalog.text, f.run, 'error'::pg_catalog.text, pg_catalog.left(f.error, 1001::pg_catalog.int4))
      FROM ROWS FROM (pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6))
           WITH ORDINALITY AS f(kind, count, run, error, nth)
     WHERE f.kind IS NOT NULL
     ORDER BY f.nth
     LIMIT 32::pg_catalog.int8;
    GET DIAGNOSTICS noted = ROW_COUNT;
    RETURN noted;
END $function$;

CREATE OR REPLACE FUNCTION @.studio_end_backends(target uuid, stalled_at bigint, why text, by_pod text) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    row @.studio_pods;
    ended integer;
BEGIN
    -- A pod that is dead already died of something else.
    IF NOT EXISTS (SELECT FROM @.studio_pods AS p WHERE p.incarnation = target
            AND (@.studio_holds(p.lock_key, p.liveness_pid) OR @.studio_holds(p.witness_key, p.control_pid))) THEN
        RETURN NULL::integer;
    END IF;
    -- A peer waits for nobody's row: it comes back. An operator waits, and is told.
    IF stalled_at IS NOT NULL AND NOT EXISTS (
            SELECT FROM @.studio_pods AS p WHERE p.incarnation = target FOR NO KEY UPDATE SKIP LOCKED) THEN
        RETURN NULL::integer;
    END IF;
    -- Marked first, and the row is locked until commit: the pod that buries it waits for that, and finds the reason. Several
    -- peers find the same pod stalled. The first one marks it; the next would find its backends still ending. An operator
    -- may repeat an eviction.
    UPDATE @.studio_pods AS p SET evicted = COALESCE(p.evicted, why)
        WHERE p.incarnation = target
          AND (stalled_at IS NULL OR (p.event_index = stalled_at AND p.state = 'active'::text AND p.evicted IS NULL))
        RETURNING p.* INTO row;
    IF row.pod_id IS NULL THEN
        RETURN NULL::integer;
    END IF;
    -- The log's lock before anything that cannot be undone: a wait for the lock may fail.
    LOCK TABLE @.studio_log_order IN EXCLUSIVE MODE;
    -- By key, database and the pids in its row: a prober may hold a key for a moment, and must not be ended.
    SELECT pg_catalog.count(*) FILTER (WHERE pg_catalog.pg_terminate_backend(l.pid)) INTO ended
      FROM pg_catalog.pg_locks AS l
     WHERE l.locktype = 'advisory'::text AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock'::text
       AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
       AND ((((l.classid::bigint << 32) | l.objid::bigint) = row.lock_key AND l.pid = row.liveness_pid)
         OR (((l.classid::bigint << 32) | l.objid::bigint) = row.witness_key AND l.pid = row.control_pid));
    PERFORM @.studio_append_event('evicted'::text, row.pod_id, row.incarnation, by_pod,
        pg_catalog.jsonb_build_object('reason'::text, row.evicted, 'backends'::text, ended, 'event_index'::text, row.event_index));
    RETURN ended;
END $function$;

-- The functions that prune call it under the rights of the owner; nobody else has any on the table.
CREATE OR REPLACE FUNCTION @.studio_may_prune(older_than interval) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
BEGIN
    IF older_than IS NULL OR older_than < interval '1 hour' THEN
        RAISE EXCEPTION 'nothing younger than an hour is pruned' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    LOCK TABLE @.studio_prune_order IN EXCLUSIVE MODE NOWAIT;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $function$;

-- 2. Transactions that are left open ----------------------------------------------------------------------------

CREATE FUNCTION @.studio_limit_transaction(patience_ms integer) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    setting text;
    value text;
BEGIN
    FOREACH setting IN ARRAY ARRAY['idle_in_transaction_session_timeout', 'statement_timeout'] LOOP
        value := pg_catalog.current_setting(setting);
        -- 0 is no limit.
        value := CASE WHEN value ~ '^[0-9]+$' THEN pg_catalog.concat(value, 'ms') ELSE value END;
        IF value::interval NOT BETWEEN '1 microsecond'::interval AND pg_catalog.make_interval(secs => patience_ms / 1000.0) THEN
            PERFORM pg_catalog.set_config(setting, patience_ms::text, true);
        END IF;
    END LOOP;
END $function$;
COMMENT ON FUNCTION @.studio_limit_transaction(integer) IS 'Until the transaction ends, idle_in_transaction_session_timeout and statement_timeout are at most patience_ms. The functions for operators call it first: whoever leaves their transaction open holds up a burial, or the log, for no longer. A shorter limit stays.';

CREATE OR REPLACE FUNCTION @.studio_drain(pod text) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    asked uuid;
BEGIN
    PERFORM @.studio_limit_transaction(3000::integer);
    UPDATE @.studio_pods AS p SET drain_requested = COALESCE(p.drain_requested, session_user::text)
        WHERE p.pod_id = pod RETURNING p.incarnation INTO asked;
    IF asked IS NULL THEN
        RAISE EXCEPTION 'no pod named % is in the roster', pg_catalog.quote_literal(pod)
            USING ERRCODE = 'no_data_found', HINT = 'SELECT pod_id FROM studio_pod_status lists them.';
    END IF;
    PERFORM pg_catalog.pg_notify(@.studio_channel(), 'asked'::text);
    RETURN asked;
END $function$;

CREATE OR REPLACE FUNCTION @.studio_evict(pod text) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    target uuid;
BEGIN
    PERFORM @.studio_limit_transaction(3000::integer);
    SELECT p.incarnation INTO target FROM @.studio_pods AS p WHERE p.pod_id = pod;
    IF target IS NULL THEN
        RAISE EXCEPTION 'no pod named % is in the roster', pg_catalog.quote_literal(pod)
            USING ERRCODE = 'no_data_found', HINT = 'SELECT pod_id FROM studio_pod_status lists them.';
    END IF;
    IF @.studio_end_backends(target, NULL::bigint, 'evicted'::text, session_user::text) IS NULL THEN
        RAISE EXCEPTION 'pod % is dead already: nobody holds its locks', pg_catalog.quote_literal(pod)
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'A peer buries it; see studio_pod_status.';
    END IF;
    RETURN target;
END $function$;

CREATE OR REPLACE FUNCTION @.studio_release(run uuid) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    standing text;
BEGIN
    PERFORM @.studio_limit_transaction(3000::integer);
    UPDATE @.studio_runs AS r SET state = 'running', finished_at = NULL, error = NULL, crashes = 0,
            owner_pod = NULL, owner_incarnation = NULL
        WHERE r.run_id = run AND r.state = 'quarantined';
    IF NOT FOUND THEN
        SELECT r.state INTO standing FROM @.studio_runs AS r WHERE r.run_id = run;
        IF standing IS NULL THEN
            RAISE EXCEPTION 'there is no run %', run USING ERRCODE = 'no_data_found';
        END IF;
        RAISE EXCEPTION 'run % is %, not quarantined', run, standing
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM pg_catalog.pg_notify(@.studio_channel(), 'recover'::text);
    RETURN run;
END $function$;

-- Whoever applies this, the functions that lock these tables run as the owner of the tables that were there before.
DO $function$
DECLARE
    before text;
BEGIN
    SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) INTO before
      FROM pg_catalog.pg_class AS c
     WHERE c.oid = '@.studio_pod_events'::pg_catalog.regclass
       AND c.relowner <> (SELECT n.relowner FROM pg_catalog.pg_class AS n
                           WHERE n.oid = '@.studio_log_order'::pg_catalog.regclass);
    IF before IS NULL THEN
        RETURN;
    END IF;
    -- The names begin their literals, so that one with a quote is quoted for the literal as well.
    EXECUTE pg_catalog.concat('ALTER TABLE '::text, '@.studio_log_order'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER TABLE '::text, '@.studio_prune_order'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER FUNCTION '::text, '@.studio_order_events()'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER FUNCTION '::text, '@.studio_limit_transaction(integer)'::text, ' OWNER TO '::text, before);
END $function$;

-- Last, for it locks the log until the end of this transaction.
CREATE TRIGGER order_events BEFORE INSERT ON @.studio_pod_events
    FOR EACH STATEMENT EXECUTE FUNCTION @.studio_order_events();
