-- Retention: what has ended is deleted in small batches once it is old, by the server's clock. Pods have no right to delete
-- history; they may call these functions, which run under the rights of the schema's owner and delete nothing that is
-- younger than an hour, nothing that runs, and nothing that a running run still refers to.

CREATE INDEX studio_runs_finished ON studio_runs (state, finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX studio_pod_sessions_ended ON studio_pod_sessions (ended_at) WHERE ended_at IS NOT NULL;

-- One round at a time: whoever comes second gets NULL, and neither waits.
CREATE FUNCTION studio_may_prune(older_than interval) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
BEGIN
    IF older_than IS NULL OR older_than < interval '1 hour' THEN
        RAISE EXCEPTION 'nothing younger than an hour is pruned' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended(pg_catalog.current_schema(), 8));
END $$;
COMMENT ON FUNCTION studio_may_prune(interval) IS 'Refuses ages below an hour; false while another transaction prunes.';

CREATE FUNCTION studio_prune_runs(states text[], older_than interval, most integer, OUT gone integer, OUT more boolean)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
DECLARE
    picked uuid[];
    chunks integer;
BEGIN
    IF NOT studio_may_prune(older_than) THEN
        RETURN;
    END IF;
    -- A row that somebody holds is for the next round.
    SELECT pg_catalog.array_agg(o.run_id) INTO picked FROM (
        SELECT r.run_id FROM studio_runs AS r
         WHERE r.state = ANY (states) AND r.state <> 'running' AND r.finished_at < pg_catalog.now() - older_than
         LIMIT most FOR UPDATE SKIP LOCKED) AS o;
    -- First what hangs on a run. Of chunks there can be very many: they go from the last one back, and a run when it has
    -- none left.
    DELETE FROM studio_run_chunks AS c USING (
        SELECT k.run_id, k.generation, k.seq FROM studio_run_chunks AS k WHERE k.run_id = ANY (picked)
         ORDER BY k.run_id, k.generation DESC, k.seq DESC LIMIT 50 * most) AS k
     WHERE c.run_id = k.run_id AND c.generation = k.generation AND c.seq = k.seq;
    GET DIAGNOSTICS chunks = ROW_COUNT;
    IF chunks = 50 * most THEN
        SELECT pg_catalog.array_agg(p) INTO picked FROM pg_catalog.unnest(picked) AS p
         WHERE NOT EXISTS (SELECT FROM studio_run_chunks AS c WHERE c.run_id = p);
    END IF;
    DELETE FROM studio_run_resets AS s WHERE s.run_id = ANY (picked);
    DELETE FROM studio_run_attempts AS a WHERE a.run_id = ANY (picked);
    DELETE FROM studio_runs AS r WHERE r.run_id = ANY (picked);
    GET DIAGNOSTICS gone = ROW_COUNT;
    more := gone >= most OR chunks = 50 * most;
END $$;
COMMENT ON FUNCTION studio_prune_runs(text[], interval, integer) IS 'Deletes at most so many ended runs in these states that ended longer ago than that, with all that hangs on them, and at most fifty times as many chunks. Returns how many runs, and whether there may be more; NULL: another prunes at the moment.';

CREATE FUNCTION studio_prune_sessions(older_than interval, most integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
DECLARE
    gone integer;
BEGIN
    IF NOT studio_may_prune(older_than) THEN
        RETURN NULL;
    END IF;
    -- A claim reads here why the owner of a running run ended, and what its own pod left behind.
    DELETE FROM studio_pod_sessions AS s WHERE s.incarnation IN (
        SELECT o.incarnation FROM studio_pod_sessions AS o
         WHERE o.ended_at < pg_catalog.now() - older_than
           AND NOT EXISTS (SELECT FROM studio_runs AS r WHERE r.state = 'running' AND r.owner_incarnation = o.incarnation)
           AND NOT EXISTS (SELECT FROM studio_pods AS p WHERE p.incarnation = o.incarnation)
         LIMIT most FOR UPDATE OF o SKIP LOCKED);
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END $$;
COMMENT ON FUNCTION studio_prune_sessions(interval, integer) IS 'Deletes at most so many incarnations that ended longer ago than that, but for owners of running runs. Returns how many; NULL: another prunes at the moment.';

CREATE FUNCTION studio_prune_events(older_than interval, first bigint, upto bigint, roster jsonb, by_pod text, incarnation uuid)
    RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path FROM CURRENT
    AS $$
DECLARE
    gone integer;
BEGIN
    IF NOT studio_may_prune($1) THEN
        RETURN NULL;
    END IF;
    -- The log's lock is not needed: what is appended comes after every event that is there. But another may have pruned
    -- since the caller read the beginning of the log, which is what first says.
    IF (SELECT pg_catalog.min(e.idx) FROM studio_pod_events AS e) IS DISTINCT FROM $2
       OR EXISTS (SELECT FROM studio_pod_events AS e WHERE e.idx <= $3 AND e.at >= pg_catalog.now() - $1) THEN
        RETURN NULL;
    END IF;
    DELETE FROM studio_pod_events AS e WHERE e.idx < $3;
    GET DIAGNOSTICS gone = ROW_COUNT;
    -- It keeps the position of the event that it replaces: no reader meets a position anew, or misses one after it.
    UPDATE studio_pod_events AS e SET kind = 'snapshot', pod_id = $5, incarnation = $6, by_pod = $5, detail = $4
        WHERE e.idx = $3;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no event %', $3 USING ERRCODE = 'no_data_found';
    END IF;
    RETURN gone;
END $$;
COMMENT ON FUNCTION studio_prune_events(interval, bigint, bigint, jsonb, text, uuid) IS 'Replaces the events from the first to another, all older than that, by one of kind snapshot, whose detail the caller folded from them. Returns how many rows are gone; NULL: another prunes or has pruned, or some of them are too young.';

-- Whether a suspicion was written down before is in the snapshot, where its event is not there any more.
CREATE OR REPLACE FUNCTION studio_suspect(suspect uuid, stalled_at bigint, by_pod text, looks integer) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
DECLARE
    pod text;
BEGIN
    -- Every peer comes to suspect it at about the same time: one of them writes it down.
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(pg_catalog.current_schema(), 2));
    SELECT p.pod_id INTO pod FROM studio_pods AS p WHERE p.incarnation = suspect AND p.event_index = stalled_at;
    IF pod IS NULL OR EXISTS (SELECT FROM studio_pod_events AS e WHERE e.pod_id = pod AND e.incarnation = suspect
            AND e.kind = 'suspected' AND e.detail -> 'event_index' = pg_catalog.to_jsonb(stalled_at))
       OR EXISTS (SELECT FROM studio_pod_events AS e WHERE e.kind = 'snapshot'
            AND e.detail -> 'suspected' -> suspect::text = pg_catalog.to_jsonb(stalled_at)) THEN
        RETURN false;
    END IF;
    PERFORM studio_append_event('suspected', pod, suspect, by_pod,
        pg_catalog.jsonb_build_object('event_index', stalled_at, 'looks', looks));
    RETURN true;
END $$;

REVOKE ALL ON FUNCTION studio_prune_runs(text[], interval, integer), studio_prune_sessions(interval, integer),
    studio_prune_events(interval, bigint, bigint, jsonb, text, uuid) FROM PUBLIC;

-- Last, for it locks the log until the end of this transaction.
ALTER TABLE studio_pod_events DROP CONSTRAINT studio_pod_events_kind_check,
    ADD CONSTRAINT studio_pod_events_kind_check CHECK (kind IN
        ('joined', 'draining', 'detached', 'returned', 'suspected', 'evicted', 'buried', 'claimed', 'quarantined', 'snapshot'));
CREATE UNIQUE INDEX studio_pod_events_snapshot ON studio_pod_events ((true)) WHERE kind = 'snapshot';

COMMENT ON COLUMN studio_pod_events.kind IS 'joined, draining, detached, returned, suspected, evicted, buried, claimed, quarantined; snapshot: the roster as it was after this position, in place of all events up to it.';
