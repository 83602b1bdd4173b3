-- Deletes scores of a slice whose pods have no session in the window any more.
--
-- Arguments:
--   token   uuid    whose roll-up it is
--   keys    text[]  the pods of the slice that have one
--   slices  int4    into how many slices the pods are divided
--   slice   int4    which one it is, from 0 on
--   most    int8    how many at most
--
-- Returns one row: whether the roll-up is still the caller's (if not, nothing was deleted), and how many are gone.
\set in_slice `cat part/in_slice.sql`
WITH mine AS MATERIALIZED (
    SELECT m.what FROM :"schema".studio_roll_ups m WHERE m.what = 'reliability' AND m.token = :'token'::uuid
), old AS MATERIALIZED (
    SELECT r.pod_id FROM :"schema".studio_pod_reliability r
     -- Arrays and hashes, and no joins: a plan may be older than the rows of a first roll-up, and expect none.
     WHERE r.pod_id = ANY (ARRAY(
           SELECT k.key FROM (SELECT r.pod_id AS key FROM :"schema".studio_pod_reliability r) k
            WHERE :in_slice
              AND k.key NOT IN (SELECT l.key FROM unnest(:'keys'::text[]) AS l (key))
            LIMIT :'most'::int8))
       AND EXISTS (SELECT FROM mine)
       FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM :"schema".studio_pod_reliability r WHERE r.pod_id = ANY (ARRAY(SELECT o.pod_id FROM old o)) RETURNING 1
)
SELECT EXISTS (SELECT FROM mine) AS is_mine, (SELECT count(*) FROM gone) AS rows;
