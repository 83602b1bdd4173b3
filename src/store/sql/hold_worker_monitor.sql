-- Makes this pod the one that looks after the liveness of workers, or lets it stay so, and counts a look.
--
-- Arguments:
--   own    uuid  the incarnation of the pod
--   stuck  int8  the number of looks at which the present monitor stands still, as this pod saw it; NULL: it does not
--
-- Returns the number of looks. No row: another pod looks after them.
WITH
  seat AS MATERIALIZED (
    SELECT m.single
      FROM :"schema".studio_worker_monitor m
     WHERE EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = :'own'::uuid)
       AND (m.incarnation = :'own'::uuid
            OR NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = m.incarnation)
            OR m.looks = :'stuck'::int8)
       FOR UPDATE SKIP LOCKED
  )
UPDATE :"schema".studio_worker_monitor m
   SET incarnation = :'own'::uuid, looks = m.looks + 1
  FROM seat
 WHERE m.single = seat.single
RETURNING m.looks;
