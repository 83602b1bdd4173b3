-- Reads the state of the sequence of fences (L9).
--
-- Returns one row. `last` is 0 if the sequence has given no fence.
SELECT q.seqcache,
       COALESCE(pg_sequence_last_value(q.seqrelid::regclass), 0::int8) AS last
  FROM pg_sequence q
 WHERE q.seqrelid = :'studio_fence'::regclass;
