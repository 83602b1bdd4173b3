-- podlock's tables, views and functions. Runs with search_path = <schema>, pg_temp, so that every name below
-- lands in, and every function body resolves to, the schema that the pod was configured with.
-- Applied migrations are never edited: refinery keeps their checksums.

-- 1. Numbers -----------------------------------------------------------------------------------------------------

CREATE SEQUENCE studio_fence AS bigint CACHE 1;
COMMENT ON SEQUENCE studio_fence IS 'Fences: one number per claim of a run, for all pods. CACHE 1, so that they only rise (L9).';

CREATE SEQUENCE studio_beat AS bigint CACHE 1;
COMMENT ON SEQUENCE studio_beat IS 'The global event index: a pod that made progress writes the next value into its row.';

-- 2. The roster --------------------------------------------------------------------------------------------------

CREATE TABLE studio_pods (
    pod_id            text        NOT NULL,
    state             text        NOT NULL DEFAULT 'active',
    started_at        timestamptz NOT NULL DEFAULT pg_catalog.now(),
    version           text        NOT NULL,
    labels            jsonb       NOT NULL DEFAULT '{}',
    event_index       bigint      NOT NULL,
    beat_at           timestamptz NOT NULL DEFAULT pg_catalog.now(),
    drain_requested   text,
    incarnation       uuid        NOT NULL,
    session           bigint      NOT NULL DEFAULT 1,
    lock_key          bigint      NOT NULL,
    witness_key       bigint      NOT NULL,
    liveness_pid      integer     NOT NULL,
    liveness_started  timestamptz NOT NULL,
    control_pid       integer,
    control_started   timestamptz,
    CONSTRAINT studio_pods_pkey PRIMARY KEY (pod_id),
    CONSTRAINT studio_pods_incarnation_key UNIQUE (incarnation),
    CONSTRAINT studio_pods_lock_key_key UNIQUE (lock_key),
    CONSTRAINT studio_pods_witness_key_key UNIQUE (witness_key),
    CONSTRAINT studio_pods_state_check CHECK (state IN ('active', 'draining')),
    CONSTRAINT studio_pods_pod_id_check CHECK (pg_catalog.char_length(pod_id) BETWEEN 1 AND 128)
) WITH (fillfactor = 70);

COMMENT ON TABLE  studio_pods IS 'The roster: the pods that say they are here. Only the lock says who really is: see studio_pod_status. A row leaves by burial, or when the next incarnation of the same name takes its place.';
COMMENT ON COLUMN studio_pods.pod_id IS 'The pod''s name (POD_NAME). A label: it may be used again after a restart.';
COMMENT ON COLUMN studio_pods.state IS 'active, or draining once the pod has begun its clean stop.';
COMMENT ON COLUMN studio_pods.started_at IS 'When this incarnation registered. For people; nothing is decided on it.';
COMMENT ON COLUMN studio_pods.version IS 'The version that the service gave itself.';
COMMENT ON COLUMN studio_pods.labels IS 'Free key-value pairs of the service.';
COMMENT ON COLUMN studio_pods.event_index IS 'The global event index at this pod''s last beat. It stands still when the pod runs and gets nowhere.';
COMMENT ON COLUMN studio_pods.beat_at IS 'When event_index last moved. For people; nothing is decided on it.';
COMMENT ON COLUMN studio_pods.drain_requested IS 'Who asked this pod to drain, by studio_drain(); NULL if nobody did.';
COMMENT ON COLUMN studio_pods.incarnation IS 'The identity of this registration. Runs and history refer to it, never to the name.';
COMMENT ON COLUMN studio_pods.session IS 'How many liveness sessions this incarnation has had; raised each time that it comes back from a detach.';
COMMENT ON COLUMN studio_pods.lock_key IS 'The key of the session advisory lock that means "this pod lives": studio_lock_key(pod_id).';
COMMENT ON COLUMN studio_pods.witness_key IS 'The key of the second lock, on the control session, that tells a broken connection from a dead process.';
COMMENT ON COLUMN studio_pods.liveness_pid IS 'The server''s process that holds lock_key for this pod.';
COMMENT ON COLUMN studio_pods.liveness_started IS 'When that process began: a process id alone can come back.';
COMMENT ON COLUMN studio_pods.control_pid IS 'The server''s process that holds witness_key for this pod.';
COMMENT ON COLUMN studio_pods.control_started IS 'When that process began.';

-- 3. History -----------------------------------------------------------------------------------------------------

CREATE TABLE studio_pod_sessions (
    incarnation  uuid        NOT NULL,
    pod_id       text        NOT NULL,
    began_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    ended_at     timestamptz,
    reason       text,
    buried_by    text,
    CONSTRAINT studio_pod_sessions_pkey PRIMARY KEY (incarnation),
    CONSTRAINT studio_pod_sessions_reason_check CHECK (reason IN ('shutdown', 'lost', 'stalled', 'evicted', 'replaced', 'detached')),
    CONSTRAINT studio_pod_sessions_ended_check CHECK ((ended_at IS NULL) = (reason IS NULL))
);
CREATE INDEX studio_pod_sessions_by_pod ON studio_pod_sessions (pod_id, began_at DESC);

COMMENT ON TABLE  studio_pod_sessions IS 'One row per incarnation: when it began, when and why it ended, who buried it.';
COMMENT ON COLUMN studio_pod_sessions.incarnation IS 'The registration that this row is about.';
COMMENT ON COLUMN studio_pod_sessions.pod_id IS 'The name that it bore.';
COMMENT ON COLUMN studio_pod_sessions.began_at IS 'When it registered.';
COMMENT ON COLUMN studio_pod_sessions.ended_at IS 'When its row left the roster; NULL while it is there.';
COMMENT ON COLUMN studio_pod_sessions.reason IS 'shutdown: clean stop. lost: its process or host died. stalled, evicted: it ran and got nowhere. replaced: a new process took its name. detached: it was cut off past its deadline and gave itself up.';
COMMENT ON COLUMN studio_pod_sessions.buried_by IS 'The pod that buried it; NULL where the next incarnation of the name took its place.';

CREATE TABLE studio_pod_events (
    idx          bigint      GENERATED ALWAYS AS IDENTITY,
    at           timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    kind         text        NOT NULL,
    pod_id       text        NOT NULL,
    incarnation  uuid        NOT NULL,
    by_pod       text        NOT NULL,
    detail       jsonb       NOT NULL DEFAULT '{}',
    CONSTRAINT studio_pod_events_pkey PRIMARY KEY (idx),
    CONSTRAINT studio_pod_events_kind_check CHECK (kind IN
        ('joined', 'draining', 'detached', 'returned', 'suspected', 'evicted', 'buried', 'claimed', 'quarantined'))
);
CREATE INDEX studio_pod_events_by_pod ON studio_pod_events (pod_id, idx DESC);

COMMENT ON TABLE  studio_pod_events IS 'The log of the pods'' lives, in the order in which it happened: idx rises in commit order. Folding it gives the roster.';
COMMENT ON COLUMN studio_pod_events.idx IS 'Position in the log. A reader that has seen idx n has seen everything before it.';
COMMENT ON COLUMN studio_pod_events.at IS 'The server''s time. For people.';
COMMENT ON COLUMN studio_pod_events.kind IS 'joined, draining, detached, returned, suspected, evicted, buried, claimed, quarantined.';
COMMENT ON COLUMN studio_pod_events.pod_id IS 'The pod that the event is about.';
COMMENT ON COLUMN studio_pod_events.incarnation IS 'Its incarnation.';
COMMENT ON COLUMN studio_pod_events.by_pod IS 'The pod that wrote the event.';
COMMENT ON COLUMN studio_pod_events.detail IS 'The evidence and the numbers behind the event.';

-- 4. Runs --------------------------------------------------------------------------------------------------------

CREATE TABLE studio_runs (
    run_id             uuid        NOT NULL,
    kind               text        NOT NULL,
    key                text,
    state              text        NOT NULL DEFAULT 'running',
    owner_pod          text,
    owner_incarnation  uuid,
    fence              bigint      NOT NULL DEFAULT 0,
    attempt            integer     NOT NULL DEFAULT 0,
    crashes            integer     NOT NULL DEFAULT 0,
    created_at         timestamptz NOT NULL DEFAULT pg_catalog.now(),
    finished_at        timestamptz,
    input              jsonb       NOT NULL DEFAULT 'null',
    checkpoint         jsonb,
    result             jsonb,
    error              text,
    CONSTRAINT studio_runs_pkey PRIMARY KEY (run_id),
    CONSTRAINT studio_runs_state_check CHECK (state IN ('running', 'succeeded', 'failed', 'cancelled', 'quarantined')),
    CONSTRAINT studio_runs_owner_check CHECK ((owner_pod IS NULL) = (owner_incarnation IS NULL)),
    CONSTRAINT studio_runs_finished_check CHECK ((state = 'running') = (finished_at IS NULL))
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX studio_runs_key ON studio_runs (kind, key) WHERE state = 'running' AND key IS NOT NULL;
CREATE INDEX studio_runs_running ON studio_runs (owner_incarnation, run_id) WHERE state = 'running';
CREATE INDEX studio_runs_created ON studio_runs (created_at DESC, run_id);

COMMENT ON TABLE  studio_runs IS 'The runs: long work that a pod holds in memory and that another resumes when it dies. Every write of an owner names its incarnation and its fence.';
COMMENT ON COLUMN studio_runs.run_id IS 'The run.';
COMMENT ON COLUMN studio_runs.kind IS 'Which handler runs it. A pod claims only the kinds that it has a handler for.';
COMMENT ON COLUMN studio_runs.key IS 'Optional: of one kind and key, at most one run is running.';
COMMENT ON COLUMN studio_runs.state IS 'running, succeeded, failed, cancelled, quarantined. A running run whose owner is NULL or not in the roster is an orphan: see studio_orphans.';
COMMENT ON COLUMN studio_runs.owner_pod IS 'Name of the last owner. For people.';
COMMENT ON COLUMN studio_runs.owner_incarnation IS 'The incarnation that owns it; NULL: nobody yet, or given back.';
COMMENT ON COLUMN studio_runs.fence IS 'The number of its latest claim; 0: never owned. Pass it on to other systems: a larger one is newer.';
COMMENT ON COLUMN studio_runs.attempt IS 'How many times a handler was begun for it.';
COMMENT ON COLUMN studio_runs.crashes IS 'How many owners in a row crashed under it without progress (a checkpoint) in between.';
COMMENT ON COLUMN studio_runs.created_at IS 'When it was started.';
COMMENT ON COLUMN studio_runs.finished_at IS 'When it ended; NULL while running.';
COMMENT ON COLUMN studio_runs.input IS 'What it was started with.';
COMMENT ON COLUMN studio_runs.checkpoint IS 'What its last owner saved to go on from.';
COMMENT ON COLUMN studio_runs.result IS 'What a succeeded run returned.';
COMMENT ON COLUMN studio_runs.error IS 'Why a failed run failed.';

CREATE TABLE studio_run_attempts (
    run_id       uuid        NOT NULL,
    attempt      integer     NOT NULL,
    pod_id       text        NOT NULL,
    incarnation  uuid        NOT NULL,
    fence        bigint      NOT NULL,
    began_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    ended_at     timestamptz,
    reason       text,
    CONSTRAINT studio_run_attempts_pkey PRIMARY KEY (run_id, attempt),
    CONSTRAINT studio_run_attempts_run FOREIGN KEY (run_id) REFERENCES studio_runs (run_id) ON DELETE CASCADE,
    CONSTRAINT studio_run_attempts_ended_check CHECK ((ended_at IS NULL) = (reason IS NULL))
);
CREATE INDEX studio_run_attempts_by_incarnation ON studio_run_attempts (incarnation);

COMMENT ON TABLE  studio_run_attempts IS 'One row per attempt at a run: who, under which fence, from when to when, and how it ended.';
COMMENT ON COLUMN studio_run_attempts.run_id IS 'The run.';
COMMENT ON COLUMN studio_run_attempts.attempt IS 'The first is 1.';
COMMENT ON COLUMN studio_run_attempts.pod_id IS 'Name of the pod that made it.';
COMMENT ON COLUMN studio_run_attempts.incarnation IS 'Its incarnation.';
COMMENT ON COLUMN studio_run_attempts.fence IS 'The fence of this attempt.';
COMMENT ON COLUMN studio_run_attempts.began_at IS 'When it was claimed.';
COMMENT ON COLUMN studio_run_attempts.ended_at IS 'When it ended; for an owner that died, when that pod was buried or replaced. NULL while it goes on.';
COMMENT ON COLUMN studio_run_attempts.reason IS 'succeeded, failed, cancelled, yielded; adopted (its own pod took it up anew); or why its owner ended, as in studio_pod_sessions.reason.';

-- 5. Keys and channel --------------------------------------------------------------------------------------------

CREATE FUNCTION studio_lock_key(pod_id text) RETURNS bigint
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path FROM CURRENT
    AS $$ SELECT pg_catalog.hashtextextended(pg_catalog.concat(pg_catalog.current_schema(), '/', pod_id), 0) $$;
COMMENT ON FUNCTION studio_lock_key(text) IS 'The advisory lock key that a living pod of this name holds on its liveness session.';

CREATE FUNCTION studio_witness_key(pod_id text) RETURNS bigint
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path FROM CURRENT
    AS $$ SELECT pg_catalog.hashtextextended(pg_catalog.concat(pg_catalog.current_schema(), '/', pod_id), 1) $$;
COMMENT ON FUNCTION studio_witness_key(text) IS 'The advisory lock key that a living pod of this name holds on its control session.';

CREATE FUNCTION studio_channel() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE SET search_path FROM CURRENT
    AS $$ SELECT pg_catalog.concat('podlock_', pg_catalog.current_schema()) $$;
COMMENT ON FUNCTION studio_channel() IS 'The NOTIFY channel of this schema''s pods.';

-- 6. Locks -------------------------------------------------------------------------------------------------------

CREATE FUNCTION studio_lock(lock_key bigint, slice_ms integer) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', slice_ms::text, true);
    PERFORM pg_catalog.pg_advisory_lock(lock_key);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END $$;
COMMENT ON FUNCTION studio_lock(bigint, integer) IS 'Waits at most slice_ms for a session lock; false if it was not granted. The time-out is caught, so that it leaves nothing in the server''s log.';

CREATE FUNCTION studio_watch(liveness_key bigint, witness_key bigint, slice_ms integer, witness_ms integer,
                             OUT answer text, OUT roster_version bigint)
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
BEGIN
    answer := 'held';
    PERFORM pg_catalog.set_config('lock_timeout', slice_ms::text, true);
    BEGIN
        PERFORM pg_catalog.pg_advisory_xact_lock(liveness_key);
        answer := 'liveness';
        -- A block of its own: the time-out of this wait must not give back the lock that was just granted.
        BEGIN
            PERFORM pg_catalog.set_config('lock_timeout', witness_ms::text, true);
            PERFORM pg_catalog.pg_advisory_xact_lock(witness_key);
            answer := 'both';
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    EXCEPTION WHEN lock_not_available THEN
        NULL;
    END;
    -- Told to all before anybody acts on it: should the burier freeze, the others look soon and not at their next sweep.
    IF answer <> 'held' THEN
        PERFORM pg_catalog.pg_notify(studio_channel(), pg_catalog.jsonb_build_object('ask', 'look', 'key', liveness_key)::text);
    END IF;
    SELECT COALESCE(pg_catalog.max(idx), 0) INTO roster_version FROM studio_pod_events;
END $$;
COMMENT ON FUNCTION studio_watch(bigint, bigint, integer, integer) IS 'One slice of the watch on a peer: held (still alive), liveness (its liveness lock came free), both (its witness too); what came free is told to every pod. Also the roster''s version, the last event''s idx. Keeps no lock.';

CREATE FUNCTION studio_holds(lock_key bigint, backend integer) RETURNS boolean
    LANGUAGE sql STABLE STRICT SET search_path FROM CURRENT
    AS $$
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_locks AS l
     WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock' AND l.pid = backend
       AND ((l.classid::bigint << 32) | l.objid::bigint) = lock_key
       AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database()))
$$;
COMMENT ON FUNCTION studio_holds(bigint, integer) IS 'Whether the given server process really holds the advisory lock key in this database.';

-- 7. The event log's only writer ---------------------------------------------------------------------------------

CREATE FUNCTION studio_append_event(kind text, pod_id text, incarnation uuid, by_pod text, detail jsonb) RETURNS bigint
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
    PERFORM pg_catalog.pg_notify(studio_channel(), pg_catalog.jsonb_build_object(
        'event', $1, 'pod', $2, 'incarnation', $3, 'by', $4, 'idx', appended,
        'reason', $5 -> 'reason')::text);
    RETURN appended;
END $$;
COMMENT ON FUNCTION studio_append_event(text, text, uuid, text, jsonb) IS 'Appends to studio_pod_events and tells every pod. The last statement of its transaction.';

-- 8. For operators -----------------------------------------------------------------------------------------------

CREATE FUNCTION studio_drain(pod text) RETURNS uuid
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
    PERFORM pg_catalog.pg_notify(studio_channel(), pg_catalog.jsonb_build_object('ask', 'drain', 'incarnation', asked)::text);
    RETURN asked;
END $$;
COMMENT ON FUNCTION studio_drain(text) IS 'Asks a pod to stop cleanly: it takes no more work at once; its service, if it listens for that, lets its runs finish or hands them over, and ends. Returns the incarnation that was asked.';

CREATE VIEW studio_pod_status AS
WITH held AS MATERIALIZED (
    SELECT ((l.classid::bigint << 32) | l.objid::bigint) AS key, l.pid
      FROM pg_catalog.pg_locks AS l
     WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock'
       AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
), owned AS MATERIALIZED (
    SELECT r.owner_incarnation AS incarnation, pg_catalog.count(*) AS runs
      FROM studio_runs AS r WHERE r.state = 'running' AND r.owner_incarnation IS NOT NULL GROUP BY 1
)
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
       p.drain_requested
  FROM studio_pods AS p
  LEFT JOIN held AS h ON h.key = p.lock_key
  LEFT JOIN held AS w ON w.key = p.witness_key
  LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = h.pid
  LEFT JOIN owned AS o ON o.incarnation = p.incarnation
 ORDER BY p.pod_id;

COMMENT ON VIEW   studio_pod_status IS 'The roster beside the locks that are really held now: start here at 3 a.m.';
COMMENT ON COLUMN studio_pod_status.pod_id IS 'The pod''s name.';
COMMENT ON COLUMN studio_pod_status.state IS 'active or draining.';
COMMENT ON COLUMN studio_pod_status.alive IS 'True if the backend that the pod registered really holds its key, by pg_locks of this database.';
COMMENT ON COLUMN studio_pod_status.witness IS 'True if its control session holds the witness key. alive false with witness true: a broken connection that the pod is mending.';
COMMENT ON COLUMN studio_pod_status.holder_pid IS 'The server''s process that holds the pod''s key now; NULL if none does.';
COMMENT ON COLUMN studio_pod_status.client_addr IS 'Where that process''s client connects from; NULL over a unix socket, or without the right to see it.';
COMMENT ON COLUMN studio_pod_status.runs IS 'How many running runs name this incarnation as their owner.';
COMMENT ON COLUMN studio_pod_status.lag IS 'How long ago its event index last moved.';
COMMENT ON COLUMN studio_pod_status.event_index IS 'The global event index at its last beat.';
COMMENT ON COLUMN studio_pod_status.started_at IS 'When this incarnation registered.';
COMMENT ON COLUMN studio_pod_status.version IS 'The version that the service gave itself.';
COMMENT ON COLUMN studio_pod_status.labels IS 'Free key-value pairs of the service.';
COMMENT ON COLUMN studio_pod_status.incarnation IS 'The identity of this registration.';
COMMENT ON COLUMN studio_pod_status.session IS 'How many liveness sessions it has had; 1 if it never lost one.';
COMMENT ON COLUMN studio_pod_status.drain_requested IS 'Who asked it to drain, if anybody did.';

CREATE VIEW studio_orphans AS
SELECT r.run_id,
       r.kind,
       r.owner_pod,
       r.owner_incarnation,
       COALESCE(s.ended_at, a.ended_at, r.created_at) AS since
  FROM studio_runs AS r
  LEFT JOIN studio_pod_sessions AS s ON s.incarnation = r.owner_incarnation
  LEFT JOIN studio_run_attempts AS a ON a.run_id = r.run_id AND a.attempt = r.attempt
 WHERE r.state = 'running'
   AND (r.owner_incarnation IS NULL
        OR NOT EXISTS (SELECT FROM studio_pods AS p WHERE p.incarnation = r.owner_incarnation))
 ORDER BY 5, 1;

COMMENT ON VIEW   studio_orphans IS 'Running runs that nobody in the roster owns. A healthy fleet empties it within milliseconds; a row that stays has no pod with a handler and room for its kind. The runs of a dead pod that is not buried yet are not here: see studio_pod_status.runs where alive is false.';
COMMENT ON COLUMN studio_orphans.run_id IS 'The run.';
COMMENT ON COLUMN studio_orphans.kind IS 'Which handler it needs.';
COMMENT ON COLUMN studio_orphans.owner_pod IS 'Name of its last owner; NULL if it has none.';
COMMENT ON COLUMN studio_orphans.owner_incarnation IS 'Its last owner, which is no longer in the roster; NULL if it has none.';
COMMENT ON COLUMN studio_orphans.since IS 'When it was orphaned: its owner''s end, the end of its last attempt, or its start.';
