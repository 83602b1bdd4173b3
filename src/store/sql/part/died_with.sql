  -- The last owners that crashed under the run `r`. At most 1000, and none if the count was set to a negative number by
  -- hand.
  SELECT d.attempt, d.pod_id, d.incarnation, t.reason, t.ended_at
    FROM :"schema".studio_run_attempts d
    JOIN :"schema".studio_pod_sessions t ON t.incarnation = d.incarnation
   WHERE d.run_id = r.run_id
     AND t.reason = ANY (:'crashes'::text[])
     AND (d.reason IS NULL OR d.reason = t.reason)
   ORDER BY d.attempt DESC
