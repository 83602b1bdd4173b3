  -- Locks the rows in one order, so that two such statements cannot deadlock. Skips rows that another transaction has
  -- locked (L12): the neighbours do not wait for them.
  mine AS MATERIALIZED (
    SELECT w.nth
      FROM :"schema".studio_runs r
      JOIN wanted w ON w.run_id = r.run_id
     -- L5: this owner, under this fence, still has the run.
     WHERE r.owner_incarnation = w.owner
       AND r.fence = w.fence
       AND r.state = 'running'
     ORDER BY r.run_id
       FOR NO KEY UPDATE OF r SKIP LOCKED
  )
