-- Deletes the rows of incarnations that have ended. A pod keeps a sample for at most 7 days; 9 leaves room for clocks.
--
-- Arguments:
--   most  int8  the most rows
--
-- Returns one row: how many were deleted.
WITH
  old AS MATERIALIZED (
    SELECT w.incarnation
      FROM :"schema".studio_sample_writers w
     -- The index is on this column: it never changes, so a write of samples does not change the index.
     WHERE w.began_at < now() - make_interval(days => 9)
       AND w.wrote_at < now() - make_interval(days => 9)
       AND NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = w.incarnation)
     ORDER BY w.began_at
     LIMIT :'most'::int8
       FOR UPDATE SKIP LOCKED
  ),
  gone AS (
    DELETE FROM :"schema".studio_sample_writers w
     WHERE w.incarnation = ANY (ARRAY(SELECT old.incarnation FROM old))
    RETURNING 1
  )
SELECT count(*) AS gone FROM gone;
