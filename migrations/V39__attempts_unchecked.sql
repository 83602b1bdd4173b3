-- An attempt is inserted in the statement that inserts or claims its run, and so needs no check that the run exists.
-- The foreign key checked that with a statement for each row, and locked the run's row for it: a third of the server's
-- time for a start.

SET LOCAL search_path = pg_catalog, pg_temp;

-- Claims and ends lock the runs first and then the attempts. This keeps that order.
LOCK TABLE @.studio_runs, @.studio_run_attempts IN ACCESS EXCLUSIVE MODE;
ALTER TABLE @.studio_run_attempts DROP CONSTRAINT studio_run_attempts_run;

CREATE FUNCTION @.studio_delete_attempts() RETURNS trigger
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off
    AS $function$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        TRUNCATE @.studio_run_attempts;
        RETURN NULL;
    END IF;
    DELETE FROM @.studio_run_attempts AS a
     WHERE a.run_id = ANY (ARRAY(SELECT g.run_id FROM gone AS g));
    RETURN NULL;
END $function$;
COMMENT ON FUNCTION @.studio_delete_attempts() IS 'Deletes the attempts of the runs that a statement has deleted, or of all runs after TRUNCATE.';
REVOKE ALL ON FUNCTION @.studio_delete_attempts() FROM PUBLIC;

CREATE TRIGGER delete_attempts AFTER DELETE ON @.studio_runs
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION @.studio_delete_attempts();
CREATE TRIGGER truncate_attempts AFTER TRUNCATE ON @.studio_runs
    FOR EACH STATEMENT EXECUTE FUNCTION @.studio_delete_attempts();
