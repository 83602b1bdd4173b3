  -- How far the sequence of fences has come, and how far this statement may raise it (`protocol::fences::STEP`).
  reach AS MATERIALIZED (
    SELECT COALESCE(pg_sequence_last_value(q.seqrelid::regclass), 0::int8) AS last,
           COALESCE(pg_sequence_last_value(q.seqrelid::regclass), 0::int8) + 100000::int8 AS most,
           -- With a CACHE, sessions use numbers that they reserved earlier, and fences could fall (L9).
           q.seqcache = 1::int8 AS rises
      FROM pg_sequence q
     WHERE q.seqrelid = :'studio_fence'::regclass::oid
  )
