-- The history of all that a database accepted, for the checker: a row for each row that a transaction wrote, written in
-- that very transaction by triggers, with proofs that only the server can give at that moment.

CREATE SCHEMA chaos;

CREATE TABLE chaos.history (
    seq       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    txid      text NOT NULL DEFAULT pg_current_xact_id()::text,
    writer    text NOT NULL DEFAULT current_setting('application_name'),
    relation  text NOT NULL,
    old       jsonb,
    new       jsonb,
    proof     jsonb NOT NULL DEFAULT '{}'
);

CREATE FUNCTION chaos.record_run() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    proof jsonb := '{}';
BEGIN
    -- A claim: is the owner that it takes the run from still in the roster?
    IF TG_OP = 'UPDATE' AND OLD.fence IS DISTINCT FROM NEW.fence THEN
        proof := jsonb_build_object('old_owner_in_roster',
            EXISTS (SELECT FROM public.studio_pods AS p WHERE p.incarnation = OLD.owner_incarnation));
    END IF;
    INSERT INTO chaos.history (relation, old, new, proof)
        VALUES ('run', CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
                CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END, proof);
    RETURN NULL;
END $$;

CREATE FUNCTION chaos.record_pod() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    proof jsonb := '{}';
    writer public.studio_pods;
BEGIN
    IF TG_OP = 'DELETE' THEN
        SELECT p.* INTO writer FROM public.studio_pods AS p
            WHERE p.pod_id = split_part(current_setting('application_name'), '/', 2);
        proof := jsonb_build_object(
            'writer_holds_its_lock', COALESCE(public.studio_holds(writer.lock_key, writer.liveness_pid), false),
            'writer_drains', COALESCE(writer.state = 'draining', false),
            'holds_the_dead_pods_lock', public.studio_holds(OLD.lock_key, pg_backend_pid()),
            'holds_the_dead_pods_witness', public.studio_holds(OLD.witness_key, pg_backend_pid()),
            'writer_in_roster', writer.pod_id IS NOT NULL,
            'writer_incarnation', writer.incarnation);
    ELSIF TG_OP = 'INSERT' OR OLD.incarnation <> NEW.incarnation OR OLD.session <> NEW.session THEN
        proof := jsonb_build_object('holds_its_lock', public.studio_holds(NEW.lock_key, pg_backend_pid()));
    END IF;
    INSERT INTO chaos.history (relation, old, new, proof)
        VALUES ('pod', CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
                CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END, proof);
    RETURN OLD;
END $$;

CREATE FUNCTION chaos.record_chunk() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO chaos.history (relation, old, new, proof)
        VALUES ('chunk', CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END,
                CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END,
                jsonb_build_object('of_the_owner', TG_OP = 'DELETE' OR EXISTS (
                    SELECT FROM public.studio_runs AS r
                     WHERE r.run_id = NEW.run_id AND r.fence = NEW.fence AND r.state = 'running')));
    RETURN NULL;
END $$;

CREATE TRIGGER chaos_history AFTER INSERT OR UPDATE OR DELETE ON public.studio_runs
    FOR EACH ROW EXECUTE FUNCTION chaos.record_run();
CREATE TRIGGER chaos_history AFTER INSERT OR UPDATE ON public.studio_pods
    FOR EACH ROW EXECUTE FUNCTION chaos.record_pod();
-- Before: after the delete the statement waits for the log, and much can happen to the burier meanwhile.
CREATE TRIGGER chaos_history_of_burials BEFORE DELETE ON public.studio_pods
    FOR EACH ROW EXECUTE FUNCTION chaos.record_pod();
CREATE TRIGGER chaos_history AFTER INSERT OR UPDATE OR DELETE ON public.studio_run_chunks
    FOR EACH ROW EXECUTE FUNCTION chaos.record_chunk();

-- A worker that its owner's pod writes while that owner is not in the roster. The tables of a version before the registry
-- have none.
CREATE FUNCTION chaos.record_worker() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF split_part(current_setting('application_name'), '/', 2) = NEW.owner_pod
            AND NOT EXISTS (SELECT FROM public.studio_pods AS p WHERE p.incarnation = NEW.owner_incarnation)
            -- The monitor writes the liveness, and may be the next process of that name.
            AND (TG_OP = 'INSERT' OR to_jsonb(OLD) - '{liveness,changed_in}'::text[]
                    <> to_jsonb(NEW) - '{liveness,changed_in}'::text[]) THEN
        INSERT INTO chaos.history (relation, new) VALUES ('worker', to_jsonb(NEW));
    END IF;
    RETURN NULL;
END $$;

DO $workers$ BEGIN
    IF to_regclass('public.studio_workers') IS NOT NULL THEN
        CREATE TRIGGER chaos_history AFTER INSERT OR UPDATE ON public.studio_workers
            FOR EACH ROW EXECUTE FUNCTION chaos.record_worker();
    END IF;
END $workers$;
