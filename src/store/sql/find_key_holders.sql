-- Runs on a caller's connection as well, under the caller's search_path. So each operator, function and type is named
-- with its schema, and each literal has a type.
--
-- Finds the running runs of these kinds that have these keys, and whether a pod of the roster owns each.
--
-- Arguments:
--   kinds  text[]
--   keys   text[]  for each kind, a key of it
--
-- Returns a row for each key that a run has.
SELECT w.kind, w.key, h.run_id, h.is_owned, h.has_owner
  FROM ROWS FROM (pg_catalog.unnest(:'kinds'::pg_catalog._text), pg_catalog.unnest(:'keys'::pg_catalog._text))
       AS w (kind, key)
 CROSS JOIN LATERAL (
   SELECT r.run_id,
          r.owner_incarnation IS NOT NULL AS is_owned,
          EXISTS (SELECT FROM :"schema".studio_pods p
                   WHERE p.incarnation OPERATOR(pg_catalog.=) r.owner_incarnation) AS has_owner
     FROM :"schema".studio_runs r
    WHERE r.kind OPERATOR(pg_catalog.=) w.kind
      AND r.key OPERATOR(pg_catalog.=) w.key
      AND r.state OPERATOR(pg_catalog.=) 'running'::pg_catalog.text
    -- At most one has the key. The limit makes the server look each key up by itself.
    LIMIT 1::pg_catalog.int8
 ) h;
