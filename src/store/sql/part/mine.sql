  -- Locks the rows in one order, so that two such statements cannot deadlock. Skips rows that another transaction has
  -- locked (L12): the neighbours do not wait for them. Each row is looked up by its key: in a join, the server might read
  -- all runs that go on.
  mine AS MATERIALIZED (
    SELECT w.nth
      FROM (SELECT * FROM wanted ORDER BY wanted.run_id) w
     CROSS JOIN LATERAL (
       SELECT r.run_id
         FROM :"schema".studio_runs r
        WHERE r.run_id = w.run_id
          -- L5: this owner, under this fence, still has the run.
          AND r.owner_incarnation = w.owner
          AND r.fence = w.fence
          AND r.finished_at IS NULL
          FOR NO KEY UPDATE OF r SKIP LOCKED
     ) held
  )
