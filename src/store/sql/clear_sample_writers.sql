-- Deletes how far incarnations have written samples that have ended and can have no more. No pod keeps a sample for
-- longer than eight days.
--
-- Arguments:
--   most  int8  the most rows
--
-- Returns one row: how many were deleted.
WITH
  old AS MATERIALIZED (
    SELECT w.incarnation
      FROM :"schema".studio_sample_writers w
     WHERE w.wrote_at < clock_timestamp() - make_interval(days => 9)
       AND NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = w.incarnation)
     LIMIT :'most'::int8
       FOR UPDATE SKIP LOCKED
  ),
  gone AS (
    DELETE FROM :"schema".studio_sample_writers w USING old WHERE w.incarnation = old.incarnation RETURNING 1
  )
SELECT count(*) AS gone FROM gone;
