-- Runs on a caller's connection as well, under the caller's search_path. So each operator, function and type is named
-- with its schema, and each literal has a type.
--
-- Finds the running run of a kind that has a key, and whether a pod of the roster owns it.
--
-- Arguments:
--   kind  text
--   key   text
--
-- Returns at most one row.
SELECT r.run_id,
       r.owner_incarnation IS NOT NULL AS is_owned,
       EXISTS (SELECT FROM :"schema".studio_pods p
                WHERE p.incarnation OPERATOR(pg_catalog.=) r.owner_incarnation) AS has_owner
  FROM :"schema".studio_runs r
 WHERE r.kind OPERATOR(pg_catalog.=) :'kind'::pg_catalog.text
   AND r.key OPERATOR(pg_catalog.=) :'key'::pg_catalog.text
   AND r.state OPERATOR(pg_catalog.=) 'running'::pg_catalog.text;
