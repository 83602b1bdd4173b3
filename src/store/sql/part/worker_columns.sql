  -- The worker `w` as a pod reads it. A pod knows its own rows, so their specs are not sent. `p` is the owner's row of the
  -- roster: without one, the worker does not count.
  w.url, w.owner_pod, w.owner_incarnation, w.health, w.liveness, w.reported_at, w.since_report,
  CASE WHEN w.owner_incarnation = :'own'::uuid THEN NULL ELSE w.spec END AS spec,
  CASE WHEN w.owner_incarnation = :'own'::uuid THEN NULL ELSE w.health_check END AS health_check,
  :worker_mark AS mark, p.incarnation IS NOT NULL AS is_owned
