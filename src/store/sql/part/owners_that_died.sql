  -- The owners that died under a quarantined run `r`, as parallel arrays in the order of their attempts.
  CROSS JOIN LATERAL (
    SELECT COALESCE(array_agg(o.pod_id ORDER BY o.attempt), '{}') AS owner_pods,
           COALESCE(array_agg(o.incarnation ORDER BY o.attempt), '{}') AS owner_incarnations,
           COALESCE(array_agg(o.reason ORDER BY o.attempt), '{}') AS owner_reasons,
           COALESCE(array_agg(o.ended_at ORDER BY o.attempt), '{}') AS owner_ends
      FROM (:died_with LIMIT LEAST(GREATEST(r.crashes, 0), 1000)) o
     WHERE r.state = 'quarantined'
  ) w
