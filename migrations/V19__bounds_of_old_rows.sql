-- Looks whether the rows that are there keep the bounds of versions 16 to 18. Where one does not, its bound stays
-- unproven: it holds for what is written from now on, and the row is passed over by every pod, and named in its log. Where
-- a table is too large to be looked at in time, the same. ALTER TABLE … VALIDATE CONSTRAINT proves a bound later.

SET LOCAL statement_timeout = '20s';
DO $$
DECLARE
    bound record;
BEGIN
    FOR bound IN
        SELECT c.conrelid::pg_catalog.regclass::pg_catalog.text AS of_table, c.conname
          FROM pg_catalog.pg_constraint AS c
         WHERE c.connamespace OPERATOR(pg_catalog.=) (SELECT n.oid FROM pg_catalog.pg_namespace AS n
                 WHERE n.nspname OPERATOR(pg_catalog.=) pg_catalog.current_schema())
           AND c.conname IN ('studio_pods_name_check'::pg_catalog.name, 'studio_runs_attempt_check'::pg_catalog.name,
                'studio_runs_crashes_check'::pg_catalog.name, 'studio_runs_fence_check'::pg_catalog.name,
                'studio_runs_positions_check'::pg_catalog.name, 'studio_run_attempts_attempt_check'::pg_catalog.name)
           AND NOT c.convalidated
         ORDER BY c.conname LIMIT 6
    LOOP
        BEGIN
            EXECUTE pg_catalog.format('ALTER TABLE %s VALIDATE CONSTRAINT %I'::pg_catalog.text, bound.of_table, bound.conname);
        EXCEPTION
            WHEN check_violation THEN
                RAISE WARNING 'a row of % does not keep %: %', bound.of_table, bound.conname, SQLERRM;
            -- The server does not limit what follows in this statement any more.
            WHEN query_canceled THEN
                RAISE WARNING '% is too large to be looked at in time, or somebody cancelled it: % stays unproven',
                    bound.of_table, bound.conname;
                EXIT;
        END;
    END LOOP;
END $$;
SET LOCAL statement_timeout = 0;
