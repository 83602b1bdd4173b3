  -- The row was not locked for this statement, and the snapshot shows that the owner had the run.
  NOT EXISTS (SELECT FROM mine m WHERE m.nth = w.nth)
  AND EXISTS (SELECT FROM :"schema".studio_runs r WHERE :owned_by_each)
