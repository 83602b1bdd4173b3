-- Retention passes over what cannot be deleted. A foreign key, a trigger or a lock of the service's own on one row keeps
-- that row, with its reason, and no other. The caller names the rows, so that rows that stay do not stand in the way of
-- those behind them. Both functions hold the rules of the ones before them (V8) whatever they are asked for.

-- What became of rows that somebody asked to be deleted. NULL for gone: another transaction prunes.
CREATE TYPE studio_pruned AS (gone integer, handled integer, kept uuid[], codes text[], reasons text[]);
COMMENT ON TYPE studio_pruned IS 'What a call of studio_prune_named_runs or studio_prune_named_sessions did: how many rows are gone (NULL: another transaction prunes), how many of the named rows were handled, from the first on, and which rows stay although they are old enough, each with the SQLSTATE and the message of what kept it.';

CREATE FUNCTION studio_prune_named_runs(runs uuid[], older_than interval, chunks_max integer) RETURNS studio_pruned
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '20ms'
    AS $$
DECLARE
    done studio_pruned := ROW(NULL::integer, 0::integer, '{}'::uuid[], '{}'::text[], '{}'::text[])::studio_pruned;
    picked uuid[];
    id uuid;
    n bigint;
    chunks_left bigint := chunks_max;
BEGIN
    IF NOT studio_may_prune(older_than) THEN
        RETURN done;
    END IF;
    done.gone := 0::integer;
    -- A deferred constraint would fail at COMMIT, where nothing can be passed over any more.
    SET CONSTRAINTS ALL IMMEDIATE;
    -- A row that somebody holds is for the next round.
    SELECT COALESCE(pg_catalog.array_agg(o.run_id), '{}'::uuid[]) INTO picked FROM (
        SELECT r.run_id FROM studio_runs AS r
         WHERE r.run_id = ANY (runs) AND r.state <> 'running'::text AND r.finished_at < pg_catalog.now() - older_than
           FOR UPDATE SKIP LOCKED) AS o;
    -- All at once, where that may go well: one subtransaction and not one for each run.
    SELECT pg_catalog.count(*) INTO n FROM (
        SELECT FROM studio_run_chunks AS c WHERE c.run_id = ANY (picked) LIMIT chunks_left + 1::bigint) AS c;
    IF n <= chunks_left THEN
        BEGIN
            DELETE FROM studio_run_chunks AS c WHERE c.run_id = ANY (picked);
            DELETE FROM studio_run_resets AS s WHERE s.run_id = ANY (picked);
            DELETE FROM studio_run_attempts AS a WHERE a.run_id = ANY (picked);
            DELETE FROM studio_runs AS r WHERE r.run_id = ANY (picked);
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
                DELETE FROM studio_run_resets AS s WHERE s.run_id = id;
                DELETE FROM studio_run_attempts AS a WHERE a.run_id = id;
                DELETE FROM studio_runs AS r WHERE r.run_id = id;
                IF NOT FOUND THEN
                    RAISE EXCEPTION 'a trigger kept the row' USING ERRCODE = 'PL002';
                END IF;
                -- Of chunks there can be very many: they go from the last one back.
                DELETE FROM studio_run_chunks AS c USING (
                    SELECT k.generation, k.seq FROM studio_run_chunks AS k WHERE k.run_id = id
                     ORDER BY k.generation DESC, k.seq DESC LIMIT chunks_left) AS k
                 WHERE c.run_id = id AND c.generation = k.generation AND c.seq = k.seq;
                GET DIAGNOSTICS n = ROW_COUNT;
                IF n = chunks_left AND EXISTS (SELECT FROM studio_run_chunks AS c WHERE c.run_id = id) THEN
                    RAISE EXCEPTION 'more chunks than one transaction deletes' USING ERRCODE = 'PL003';
                END IF;
                chunks_left := chunks_left - n;
                done.gone := done.gone + 1::integer;
            EXCEPTION
                WHEN SQLSTATE 'PL003' THEN
                    -- Nothing keeps this run: some of its chunks go now, and the run with the last of them.
                    DELETE FROM studio_run_chunks AS c USING (
                        SELECT k.generation, k.seq FROM studio_run_chunks AS k WHERE k.run_id = id
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
END $$;
COMMENT ON FUNCTION studio_prune_named_runs(uuid[], interval, integer) IS 'Deletes those of these runs that ended longer ago than that, with all that hangs on them, and at most so many chunks. A run that something of the service''s own keeps stays whole, and is named with the reason.';

CREATE FUNCTION studio_prune_named_sessions(incarnations uuid[], older_than interval) RETURNS studio_pruned
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '20ms'
    AS $$
DECLARE
    done studio_pruned := ROW(NULL::integer, 0::integer, '{}'::uuid[], '{}'::text[], '{}'::text[])::studio_pruned;
    picked uuid[];
    id uuid;
    n bigint;
BEGIN
    IF NOT studio_may_prune(older_than) THEN
        RETURN done;
    END IF;
    done.gone := 0::integer;
    done.handled := pg_catalog.cardinality(incarnations);
    SET CONSTRAINTS ALL IMMEDIATE;
    -- A claim reads here why the owner of a running run ended, and what its own pod left behind.
    SELECT COALESCE(pg_catalog.array_agg(s.incarnation), '{}'::uuid[]) INTO picked FROM (
        SELECT o.incarnation FROM studio_pod_sessions AS o
         WHERE o.incarnation = ANY (incarnations) AND o.ended_at < pg_catalog.now() - older_than
           AND NOT EXISTS (SELECT FROM studio_runs AS r WHERE r.state = 'running'::text AND r.owner_incarnation = o.incarnation)
           AND NOT EXISTS (SELECT FROM studio_pods AS p WHERE p.incarnation = o.incarnation)
           FOR UPDATE OF o SKIP LOCKED) AS s;
    BEGIN
        DELETE FROM studio_pod_sessions AS s WHERE s.incarnation = ANY (picked);
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
            DELETE FROM studio_pod_sessions AS s WHERE s.incarnation = id;
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
END $$;
COMMENT ON FUNCTION studio_prune_named_sessions(uuid[], interval) IS 'Deletes those of these incarnations that ended longer ago than that, but for owners of running runs. One that something of the service''s own keeps stays, and is named with the reason.';

REVOKE ALL ON FUNCTION studio_prune_named_runs(uuid[], interval, integer), studio_prune_named_sessions(uuid[], interval)
    FROM PUBLIC;
