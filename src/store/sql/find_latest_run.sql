-- Finds the running run of a kind and key, or else the newest one that has ended.
--
-- Arguments:
--   kind  text
--   key   text
--
-- Returns at most one row.
WITH
  running AS MATERIALIZED (
    SELECT r.run_id
      FROM :"schema".studio_runs r
     WHERE r.kind = :'kind'::text
       AND r.key = :'key'::text
       AND r.state = 'running'
     LIMIT 1
  ),
  -- The ended runs are read only if none is running.
  ended AS MATERIALIZED (
    SELECT r.run_id
      FROM :"schema".studio_runs r
     WHERE r.kind = :'kind'::text
       AND r.key = :'key'::text
       AND NOT EXISTS (SELECT FROM running)
     ORDER BY r.created_at DESC, r.run_id DESC
     LIMIT 1
  )
SELECT run_id FROM running
UNION ALL
SELECT run_id FROM ended;
