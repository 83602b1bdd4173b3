-- Deletes rows of readers that have gone: those of pods that are not in the roster, those of other readers whose time is
-- over, and all rows of this pod.
--
-- Arguments:
--   reader  uuid  the incarnation of the pod, NULL: its rows stay
--   most    int8  how many rows at most
--
-- Returns a row for each row that was deleted. Rows that another transaction has locked are passed over (L12).
WITH
  gone AS MATERIALIZED (
    SELECT s.run_id, s.reader
      FROM :"schema".studio_stream_readers s
     WHERE s.reader = :'reader'::uuid
        OR (COALESCE(s.until < clock_timestamp(), true)
            AND NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = s.reader))
     LIMIT :'most'::int8
       FOR UPDATE OF s SKIP LOCKED
  )
DELETE FROM :"schema".studio_stream_readers s
 USING gone g
 WHERE s.run_id = g.run_id
   AND s.reader = g.reader
RETURNING s.run_id;
