-- Reads a run with all its attempts. It is one statement, so the run and its attempts are from one snapshot.
--
-- Arguments:
--   run_id   uuid    the run
--   crashes  text[]  the reasons that count as a crash of the owner
--
-- Returns one row, or none if there is no such run. The attempts are parallel arrays, and so are the owners that died
-- under a quarantined run.
\set run_columns `cat part/run_columns.sql`
\set owners_that_died `cat part/owners_that_died.sql`
\set died_with `cat part/died_with.sql`
SELECT :run_columns,
       r.traceparent, r.input, r.checkpoint, r.result, r.error, r.stdout, r.stderr, r.exit_code, r.output_escaped, r.parse_error,
       a.attempts, a.attempt_pods, a.attempt_incarnations, a.attempt_fences, a.attempt_began, a.attempt_ended,
       a.attempt_reasons
  FROM :"schema".studio_runs r
 CROSS JOIN LATERAL (
         SELECT COALESCE(array_agg(t.attempt ORDER BY t.attempt), '{}') AS attempts,
                COALESCE(array_agg(t.pod_id ORDER BY t.attempt), '{}') AS attempt_pods,
                COALESCE(array_agg(t.incarnation ORDER BY t.attempt), '{}') AS attempt_incarnations,
                COALESCE(array_agg(t.fence ORDER BY t.attempt), '{}') AS attempt_fences,
                COALESCE(array_agg(t.began_at ORDER BY t.attempt), '{}') AS attempt_began,
                COALESCE(array_agg(t.ended_at ORDER BY t.attempt), '{}') AS attempt_ended,
                COALESCE(array_agg(t.reason ORDER BY t.attempt), '{}') AS attempt_reasons
           FROM :"schema".studio_run_attempts t
          WHERE t.run_id = r.run_id
       ) a
  :owners_that_died
 WHERE r.run_id = :'run_id'::uuid;
