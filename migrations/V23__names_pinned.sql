-- Names are pinned: no function or view of podlock's ever uses an object that somebody else made.
--
-- PostgreSQL looks names up at run time, in the schemas of search_path, and takes the function or operator whose argument
-- types fit best. Where others may create objects in this schema, as on `public` before PostgreSQL 15, an operator of theirs
-- fits better than the server's own. So from this version on
--
--   * search_path is pg_catalog and nothing else while a function runs (pg_temp is named so that it comes last),
--   * or the function has an SQL-standard body (RETURN …), which is bound to its objects here and now,
--   * our own tables and functions are named with their schema, and every argument that is passed to a function of ours has
--     its type: a bare literal or NULL could pick another function of that name.
--
-- Operators in views and CHECK constraints are bound when they are created. The views are created again here, because
-- earlier versions created them with this schema in the search_path.
--
-- In this file and those after it, @ followed by a dot stands for the schema, as in the statements of the library. The
-- literal of a single @ stands for the schema's name.

SET LOCAL search_path = pg_catalog, pg_temp;

-- 1. Keys and channels -------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION @.studio_lock_key(pod_id text) RETURNS bigint
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN pg_catalog.hashtextextended(pg_catalog.concat('@'::text, '/'::text, pod_id), 0::bigint);

CREATE OR REPLACE FUNCTION @.studio_witness_key(pod_id text) RETURNS bigint
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN pg_catalog.hashtextextended(pg_catalog.concat('@'::text, '/'::text, pod_id), 1::bigint);

CREATE OR REPLACE FUNCTION @.studio_channel() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN pg_catalog.concat('podlock_'::text, '@'::text);

CREATE OR REPLACE FUNCTION @.studio_stream_channel() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN pg_catalog.concat('podstream_'::text, '@'::text);

CREATE OR REPLACE FUNCTION @.studio_holds(lock_key bigint, backend integer) RETURNS boolean
    LANGUAGE sql STABLE STRICT
    RETURN EXISTS (
        SELECT FROM pg_catalog.pg_locks AS l
         WHERE l.locktype = 'advisory'::text AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock'::text
           AND l.pid = backend AND ((l.classid::bigint << 32) | l.objid::bigint) = lock_key
           AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database()));

-- 2. Locks --------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION @.studio_lock(lock_key bigint, slice_ms integer) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
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
END $function$;

CREATE OR REPLACE FUNCTION @.studio_watch(liveness_key bigint, witness_key bigint, slice_ms integer, witness_ms integer,
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
    -- Every pod is told before anybody acts on it: if the burier freezes, the others look soon and not at their next sweep.
    -- The statement that was granted the lock sends it itself, since a frozen client sends nothing more.
    IF answer <> 'held'::text THEN
        PERFORM pg_catalog.pg_notify(@.studio_channel(), 'free'::text);
    END IF;
    SELECT COALESCE(pg_catalog.max(e.idx), 0::bigint) INTO roster_version FROM @.studio_pod_events AS e;
END $function$;

-- 3. The event log ------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION @.studio_append_event(kind text, pod_id text, incarnation uuid, by_pod text, detail jsonb) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    appended bigint;
BEGIN
    -- Appends are serialised until commit, so that idx rises in commit order and no reader can skip one. Call it
    -- as the last statement before COMMIT, sent together with it.
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('@'::text, 2));
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
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('@'::text, 2::bigint));
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

CREATE OR REPLACE FUNCTION @.studio_note_cause(incarnation uuid, cause text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
#variable_conflict use_column
DECLARE
    waits CONSTANT text := pg_catalog.current_setting('lock_timeout');
    noted boolean := false;
BEGIN
    -- A pod calls this as it ends: nothing may keep its locks longer than the death that it tells of.
    PERFORM pg_catalog.set_config('lock_timeout', '50ms'::text, true);
    BEGIN
        UPDATE @.studio_pod_sessions AS s SET cause = $2
            WHERE s.incarnation IN (SELECT o.incarnation FROM @.studio_pod_sessions AS o
                WHERE o.incarnation = $1 AND o.ended_at IS NULL FOR NO KEY UPDATE SKIP LOCKED);
        noted := FOUND;
    EXCEPTION WHEN lock_not_available THEN
        noted := false;
    END;
    PERFORM pg_catalog.set_config('lock_timeout', waits, true);
    RETURN noted;
END $function$;

CREATE OR REPLACE FUNCTION @.studio_note_waits(waits jsonb, by_pod text) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    wait record;
    noted integer := 0;
BEGIN
    -- Told by whichever observer comes first. Nobody waits to tell of a wait: another has the log, so the next look tells.
    IF NOT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('@'::text, 2::bigint)) THEN
        RETURN NULL::integer;
    END IF;
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
    -- The lock of studio_append_event: idx rises in commit order. Nobody is notified. A failed run changes nothing that a
    -- pod must act on, and a NOTIFY from each pod of a failing fleet would slow every commit down. Readers of the log look
    -- once a second anyway.
    PERFORM pg_catalog.pg_advisory_xact_lock(
        pg_catalog.hashtextextended('@'::pg_catalog.text, 2::pg_catalog.int8));
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

-- 4. For operators ------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION @.studio_drain(pod text) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    asked uuid;
BEGIN
    UPDATE @.studio_pods AS p SET drain_requested = COALESCE(p.drain_requested, session_user::text)
        WHERE p.pod_id = pod RETURNING p.incarnation INTO asked;
    IF asked IS NULL THEN
        RAISE EXCEPTION 'no pod named % is in the roster', pg_catalog.quote_literal(pod)
            USING ERRCODE = 'no_data_found', HINT = 'SELECT pod_id FROM studio_pod_status lists them.';
    END IF;
    PERFORM pg_catalog.pg_notify(@.studio_channel(), 'asked'::text);
    RETURN asked;
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
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('@'::text, 2::bigint));
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

CREATE OR REPLACE FUNCTION @.studio_evict(pod text) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    target uuid;
BEGIN
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

-- 5. Guards and fences --------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION @.studio_fence_check(run_id uuid, incarnation uuid, fence bigint, patience_ms integer DEFAULT 5000) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
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
      FROM @.studio_runs AS r WHERE r.run_id = $1 FOR SHARE OF r;
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
END $function$;

CREATE OR REPLACE FUNCTION @.studio_raise_fence(floor pg_catalog.int8) RETURNS pg_catalog.int8
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    -- While this waits for an open transaction that took a fence, every other fence waits behind it.
    SET lock_timeout = '100ms'
    AS $function$
DECLARE
    most CONSTANT pg_catalog.int8 := 1099511627776::pg_catalog.int8;
    last pg_catalog.int8;
BEGIN
    ALTER SEQUENCE @.studio_fence CACHE 1;
    last := COALESCE(pg_catalog.pg_sequence_last_value('@.studio_fence'::pg_catalog.regclass), 0::pg_catalog.int8);
    IF ($1 OPERATOR(pg_catalog.-) last) OPERATOR(pg_catalog.>) most THEN
        RAISE EXCEPTION 'the sequence of fences stands at %, and is not raised to % at once', last, $1
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'A number that is so far ahead was made by hand. See which row of studio_runs has it.';
    END IF;
    last := GREATEST(last, $1);
    EXECUTE pg_catalog.format('ALTER SEQUENCE %s RESTART WITH %s'::pg_catalog.text, '@.studio_fence'::pg_catalog.text,
        GREATEST(last, 1::pg_catalog.int8));
    IF last OPERATOR(pg_catalog.>) 0::pg_catalog.int8 THEN
        PERFORM pg_catalog.setval('@.studio_fence'::pg_catalog.regclass, last, true::pg_catalog.bool);
    END IF;
    RETURN last;
END $function$;

-- 6. Retention ----------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION @.studio_may_prune(older_than interval) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
BEGIN
    IF older_than IS NULL OR older_than < interval '1 hour' THEN
        RAISE EXCEPTION 'nothing younger than an hour is pruned' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('@'::text, 8));
END $function$;

CREATE OR REPLACE FUNCTION @.studio_prune_runs(states text[], older_than interval, most integer, OUT gone integer, OUT more boolean)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    picked uuid[];
    chunks integer;
BEGIN
    IF NOT @.studio_may_prune(older_than) THEN
        RETURN;
    END IF;
    -- A row that somebody holds is for the next round.
    SELECT pg_catalog.array_agg(o.run_id) INTO picked FROM (
        SELECT r.run_id FROM @.studio_runs AS r
         WHERE r.state = ANY (states) AND r.state <> 'running' AND r.finished_at < pg_catalog.now() - older_than
         LIMIT most FOR UPDATE SKIP LOCKED) AS o;
    -- First what hangs on a run. Of chunks there can be very many: they go from the last one back, and a run when it has
    -- none left.
    DELETE FROM @.studio_run_chunks AS c USING (
        SELECT k.run_id, k.generation, k.seq FROM @.studio_run_chunks AS k WHERE k.run_id = ANY (picked)
         ORDER BY k.run_id, k.generation DESC, k.seq DESC LIMIT 50 * most) AS k
     WHERE c.run_id = k.run_id AND c.generation = k.generation AND c.seq = k.seq;
    GET DIAGNOSTICS chunks = ROW_COUNT;
    IF chunks = 50 * most THEN
        SELECT pg_catalog.array_agg(p) INTO picked FROM pg_catalog.unnest(picked) AS p
         WHERE NOT EXISTS (SELECT FROM @.studio_run_chunks AS c WHERE c.run_id = p);
    END IF;
    DELETE FROM @.studio_run_resets AS s WHERE s.run_id = ANY (picked);
    DELETE FROM @.studio_run_attempts AS a WHERE a.run_id = ANY (picked);
    DELETE FROM @.studio_runs AS r WHERE r.run_id = ANY (picked);
    GET DIAGNOSTICS gone = ROW_COUNT;
    more := gone >= most OR chunks = 50 * most;
END $function$;

CREATE OR REPLACE FUNCTION @.studio_prune_sessions(older_than interval, most integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    gone integer;
BEGIN
    IF NOT @.studio_may_prune(older_than) THEN
        RETURN NULL;
    END IF;
    -- A claim reads here why the owner of a running run ended, and what its own pod left behind.
    DELETE FROM @.studio_pod_sessions AS s WHERE s.incarnation IN (
        SELECT o.incarnation FROM @.studio_pod_sessions AS o
         WHERE o.ended_at < pg_catalog.now() - older_than
           AND NOT EXISTS (SELECT FROM @.studio_runs AS r WHERE r.state = 'running' AND r.owner_incarnation = o.incarnation)
           AND NOT EXISTS (SELECT FROM @.studio_pods AS p WHERE p.incarnation = o.incarnation)
         LIMIT most FOR UPDATE OF o SKIP LOCKED);
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END $function$;

CREATE OR REPLACE FUNCTION @.studio_prune_events(older_than interval, first bigint, upto bigint, roster jsonb, by_pod text, incarnation uuid)
    RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    gone integer;
BEGIN
    IF NOT @.studio_may_prune($1::interval) THEN
        RETURN NULL;
    END IF;
    -- The log's lock is not needed: what is appended comes after every event that is there. But another may have pruned
    -- since the caller read the beginning of the log, which is what first says.
    IF (SELECT pg_catalog.min(e.idx) FROM @.studio_pod_events AS e) IS DISTINCT FROM $2
       OR EXISTS (SELECT FROM @.studio_pod_events AS e WHERE e.idx <= $3 AND e.at >= pg_catalog.now() - $1) THEN
        RETURN NULL;
    END IF;
    DELETE FROM @.studio_pod_events AS e WHERE e.idx < $3;
    GET DIAGNOSTICS gone = ROW_COUNT;
    -- It keeps the position of the event that it replaces: no reader meets a position anew, or misses one after it.
    UPDATE @.studio_pod_events AS e SET kind = 'snapshot', pod_id = $5, incarnation = $6, by_pod = $5, detail = $4
        WHERE e.idx = $3;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no event %', $3 USING ERRCODE = 'no_data_found';
    END IF;
    RETURN gone;
END $function$;

CREATE OR REPLACE FUNCTION @.studio_prune_named_runs(runs uuid[], older_than interval, chunks_max integer) RETURNS @.studio_pruned
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '20ms'
    AS $function$
DECLARE
    done @.studio_pruned := ROW(NULL::integer, 0::integer, '{}'::uuid[], '{}'::text[], '{}'::text[])::@.studio_pruned;
    picked uuid[];
    id uuid;
    n bigint;
    chunks_left bigint := chunks_max;
BEGIN
    IF NOT @.studio_may_prune(older_than) THEN
        RETURN done;
    END IF;
    done.gone := 0::integer;
    -- A deferred constraint would fail at COMMIT, where nothing can be passed over any more.
    SET CONSTRAINTS ALL IMMEDIATE;
    -- A row that somebody holds is for the next round.
    SELECT COALESCE(pg_catalog.array_agg(o.run_id), '{}'::uuid[]) INTO picked FROM (
        SELECT r.run_id FROM @.studio_runs AS r
         WHERE r.run_id = ANY (runs) AND r.state <> 'running'::text AND r.finished_at < pg_catalog.now() - older_than
           FOR UPDATE SKIP LOCKED) AS o;
    -- All at once, where that may go well: one subtransaction and not one for each run.
    SELECT pg_catalog.count(*) INTO n FROM (
        SELECT FROM @.studio_run_chunks AS c WHERE c.run_id = ANY (picked) LIMIT chunks_left + 1::bigint) AS c;
    IF n <= chunks_left THEN
        BEGIN
            DELETE FROM @.studio_run_chunks AS c WHERE c.run_id = ANY (picked);
            DELETE FROM @.studio_run_resets AS s WHERE s.run_id = ANY (picked);
            DELETE FROM @.studio_run_attempts AS a WHERE a.run_id = ANY (picked);
            DELETE FROM @.studio_runs AS r WHERE r.run_id = ANY (picked);
            GET DIAGNOSTICS n = ROW_COUNT;
            IF n < pg_catalog.cardinality(picked) THEN
                RAISE EXCEPTION 'a trigger kept the row' USING ERRCODE = 'PL002';
            END IF;
            done.gone := n::integer;
            done.handled := pg_catalog.cardinality(runs);
            RETURN done;
        EXCEPTION WHEN OTHERS THEN
            -- Which of them it was, and why, the loop below finds. Out of something, or broken: no row's fault.
            IF pg_catalog.left(SQLSTATE, 2) IN ('53'::text, '58'::text, 'XX'::text) THEN
                RAISE;
            END IF;
        END;
    END IF;
    FOREACH id IN ARRAY runs LOOP
        EXIT WHEN chunks_left <= 0::bigint;
        IF id = ANY (picked) THEN
            BEGIN
                DELETE FROM @.studio_run_resets AS s WHERE s.run_id = id;
                DELETE FROM @.studio_run_attempts AS a WHERE a.run_id = id;
                DELETE FROM @.studio_runs AS r WHERE r.run_id = id;
                IF NOT FOUND THEN
                    RAISE EXCEPTION 'a trigger kept the row' USING ERRCODE = 'PL002';
                END IF;
                -- Of chunks there can be very many: they go from the last one back.
                DELETE FROM @.studio_run_chunks AS c USING (
                    SELECT k.generation, k.seq FROM @.studio_run_chunks AS k WHERE k.run_id = id
                     ORDER BY k.generation DESC, k.seq DESC LIMIT chunks_left) AS k
                 WHERE c.run_id = id AND c.generation = k.generation AND c.seq = k.seq;
                GET DIAGNOSTICS n = ROW_COUNT;
                IF n = chunks_left AND EXISTS (SELECT FROM @.studio_run_chunks AS c WHERE c.run_id = id) THEN
                    RAISE EXCEPTION 'more chunks than one transaction deletes' USING ERRCODE = 'PL003';
                END IF;
                chunks_left := chunks_left - n;
                done.gone := done.gone + 1::integer;
            EXCEPTION
                WHEN SQLSTATE 'PL003' THEN
                    -- Nothing keeps this run: some of its chunks go now, and the run with the last of them.
                    DELETE FROM @.studio_run_chunks AS c USING (
                        SELECT k.generation, k.seq FROM @.studio_run_chunks AS k WHERE k.run_id = id
                         ORDER BY k.generation DESC, k.seq DESC LIMIT chunks_left) AS k
                     WHERE c.run_id = id AND c.generation = k.generation AND c.seq = k.seq;
                    EXIT;
                WHEN OTHERS THEN
                    IF pg_catalog.left(SQLSTATE, 2) IN ('53'::text, '58'::text, 'XX'::text) THEN
                        RAISE;
                    END IF;
                    done.kept := done.kept || id;
                    done.codes := done.codes || SQLSTATE::text;
                    done.reasons := done.reasons || SQLERRM::text;
            END;
        END IF;
        done.handled := done.handled + 1::integer;
    END LOOP;
    RETURN done;
END $function$;

CREATE OR REPLACE FUNCTION @.studio_prune_named_sessions(incarnations uuid[], older_than interval) RETURNS @.studio_pruned
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '20ms'
    AS $function$
DECLARE
    done @.studio_pruned := ROW(NULL::integer, 0::integer, '{}'::uuid[], '{}'::text[], '{}'::text[])::@.studio_pruned;
    picked uuid[];
    id uuid;
    n bigint;
BEGIN
    IF NOT @.studio_may_prune(older_than) THEN
        RETURN done;
    END IF;
    done.gone := 0::integer;
    done.handled := pg_catalog.cardinality(incarnations);
    SET CONSTRAINTS ALL IMMEDIATE;
    -- A claim reads here why the owner of a running run ended, and what its own pod left behind.
    SELECT COALESCE(pg_catalog.array_agg(s.incarnation), '{}'::uuid[]) INTO picked FROM (
        SELECT o.incarnation FROM @.studio_pod_sessions AS o
         WHERE o.incarnation = ANY (incarnations) AND o.ended_at < pg_catalog.now() - older_than
           AND NOT EXISTS (SELECT FROM @.studio_runs AS r WHERE r.state = 'running'::text AND r.owner_incarnation = o.incarnation)
           AND NOT EXISTS (SELECT FROM @.studio_pods AS p WHERE p.incarnation = o.incarnation)
           FOR UPDATE OF o SKIP LOCKED) AS s;
    BEGIN
        DELETE FROM @.studio_pod_sessions AS s WHERE s.incarnation = ANY (picked);
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n < pg_catalog.cardinality(picked) THEN
            RAISE EXCEPTION 'a trigger kept the row' USING ERRCODE = 'PL002';
        END IF;
        done.gone := n::integer;
        RETURN done;
    EXCEPTION WHEN OTHERS THEN
        -- Which of them it was, and why, the loop below finds.
        IF pg_catalog.left(SQLSTATE, 2) IN ('53'::text, '58'::text, 'XX'::text) THEN
            RAISE;
        END IF;
    END;
    FOREACH id IN ARRAY picked LOOP
        BEGIN
            DELETE FROM @.studio_pod_sessions AS s WHERE s.incarnation = id;
            IF NOT FOUND THEN
                RAISE EXCEPTION 'a trigger kept the row' USING ERRCODE = 'PL002';
            END IF;
            done.gone := done.gone + 1::integer;
        EXCEPTION WHEN OTHERS THEN
            IF pg_catalog.left(SQLSTATE, 2) IN ('53'::text, '58'::text, 'XX'::text) THEN
                RAISE;
            END IF;
            done.kept := done.kept || id;
            done.codes := done.codes || SQLSTATE::text;
            done.reasons := done.reasons || SQLERRM::text;
        END;
    END LOOP;
    RETURN done;
END $function$;

-- 7. Views --------------------------------------------------------------------------------------------------------

CREATE OR REPLACE VIEW @.studio_pod_status AS
WITH held AS MATERIALIZED (
    SELECT ((l.classid::bigint << 32) | l.objid::bigint) AS key, l.pid
      FROM pg_catalog.pg_locks AS l
     WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock'
       AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
), owned AS MATERIALIZED (
    SELECT r.owner_incarnation AS incarnation, pg_catalog.count(*) AS runs
      FROM @.studio_runs AS r WHERE r.state = 'running' AND r.owner_incarnation IS NOT NULL GROUP BY 1
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
       s.lags
  FROM seen AS s
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

CREATE OR REPLACE VIEW @.studio_orphans AS
SELECT r.run_id,
       r.kind,
       r.owner_pod,
       r.owner_incarnation,
       COALESCE(s.ended_at, a.ended_at, r.created_at) AS since
  FROM @.studio_runs AS r
  LEFT JOIN @.studio_pod_sessions AS s ON s.incarnation = r.owner_incarnation
  LEFT JOIN @.studio_run_attempts AS a ON a.run_id = r.run_id AND a.attempt = r.attempt
 WHERE r.state = 'running'
   AND (r.owner_incarnation IS NULL
        OR NOT EXISTS (SELECT FROM @.studio_pods AS p WHERE p.incarnation = r.owner_incarnation))
 ORDER BY 5, 1;
