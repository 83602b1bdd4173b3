  -- Takes the numbers up to `target.floor` from the sequence, so that the next fence is above it (L9). On one timeline
  -- of the database the sequence is above the floor already, and no number is taken. After a failover to a lagging
  -- standby, the sequence may be below the fence of a pod or a run. A `nextval` that must come later has to join
  -- `above`.
  above AS MATERIALIZED (
    SELECT count(nextval(:'studio_fence'::regclass)) AS passed
      FROM (SELECT generate_series(1::int8, LEAST(t.floor - e.last, 100000::int8))
              FROM reach e CROSS JOIN target t) AS missing
  )
