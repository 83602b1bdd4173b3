  -- Locks the runs in one order, so that two such statements cannot deadlock. Skips those that another transaction has
  -- locked (L12): the neighbours do not wait for them.
  looked AS MATERIALIZED (
    SELECT w.*, held.is_held
      FROM (SELECT * FROM writes ORDER BY writes.run_id) w
      LEFT JOIN LATERAL (
        SELECT true AS is_held
          FROM :"schema".studio_runs r
         WHERE :owned_by_each
           -- A write that was given up and arrives late changes nothing.
           AND r.written <= w.number
           -- If a failover lost chunks, the stream is not what the owner believes.
           AND (w.chunks IS NULL
                OR w.chunks <= :stream_length)
           FOR NO KEY UPDATE OF r SKIP LOCKED
      ) held ON true
  )
