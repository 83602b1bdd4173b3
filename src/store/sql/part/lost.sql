  -- The writes whose owners no longer have their runs.
  SELECT w.nth, false
    FROM looked w
   WHERE w.is_held IS NULL
     AND (SELECT count(*)
            FROM :"schema".studio_runs r
           WHERE :owned_by_each) = 0
