-- Runs that take their owners down with them are set aside, and may be given another chance; pods say what they run, and
-- how much of it, so that survivors share what a dead pod leaves.

ALTER TABLE studio_pods ADD COLUMN kinds text[], ADD COLUMN capacity integer;
COMMENT ON COLUMN studio_pods.kinds IS 'The kinds that it has a handler for; NULL: not known, for it was built before it could say so, and counts as having one for each.';
COMMENT ON COLUMN studio_pods.capacity IS 'The most runs that it runs at a time; NULL: not known, for it was built before it could say so.';

COMMENT ON COLUMN studio_runs.crashes IS 'How many owners in a row crashed under it without progress (a checkpoint) in between. At max_crashes of the pod that would claim it, it is quarantined instead.';
COMMENT ON COLUMN studio_runs.error IS 'Why a failed run failed; of a quarantined one, which owners died with it, and when.';

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
    PERFORM pg_catalog.pg_notify(studio_channel(), pg_catalog.jsonb_build_object(
        'event', $1, 'pod', $2, 'incarnation', $3, 'by', $4, 'idx', appended,
        'reason', $5 -> 'reason', 'run', $5 -> 'run')::text);
    RETURN appended;
END $$;

CREATE FUNCTION studio_release(run uuid) RETURNS uuid
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
    PERFORM pg_catalog.pg_notify(studio_channel(), '{"ask":"recover"}');
    RETURN run;
END $$;
COMMENT ON FUNCTION studio_release(uuid) IS 'Gives a quarantined run another chance: it is running again, nobody owns it, its crashes are forgotten, and every pod is told. Refused by the index studio_runs_key while another run of its kind and key is running.';
