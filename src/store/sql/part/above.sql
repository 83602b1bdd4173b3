  -- Takes the numbers up to `target.floor` from the sequence, so that the next fence is above it (L9). On one
  -- timeline of the database the sequence has passed the floor already, and nothing is taken. After a failover to a
  -- standby that lagged, the sequence may be behind what a pod was given or a run bears. Join `above` where `nextval`
  -- must come later.
  above AS MATERIALIZED (
    SELECT count(nextval(:'studio_fence'::regclass)) AS passed
      FROM (SELECT generate_series(1::int8, LEAST(t.floor - e.last, 100000::int8))
              FROM reach e CROSS JOIN target t) AS missing
  )
