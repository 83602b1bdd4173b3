-- Writes how far the alerts are delivered to an endpoint, and counts a round, if this pod still delivers them. It waits
-- for no row (L12).
--
-- Arguments:
--   own       uuid  the incarnation of the pod
--   name      text  the name of the endpoint
--   idx       int8  the position of the last alert that was delivered or given up, or of a later event
--   attempts  int4  how many attempts for the alert after that were begun, one that begins now included
--
-- Returns one row. `holds`: this pod delivers, and is in the roster. `moved`: the row was written. It is not if another
-- transaction has locked it.
WITH
  mine AS MATERIALIZED (
    SELECT w.name
      FROM :"schema".studio_webhooks w
     WHERE w.name = :'name'::text
       AND w.incarnation = :'own'::uuid
       -- L5: a pod that was buried delivers no more.
       AND EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = :'own'::uuid)
  ),
  free AS MATERIALIZED (
    SELECT w.name
      FROM :"schema".studio_webhooks w JOIN mine ON mine.name = w.name
     WHERE w.incarnation = :'own'::uuid
       FOR NO KEY UPDATE OF w SKIP LOCKED
  ),
  moved AS (
    UPDATE :"schema".studio_webhooks w
       SET idx = :'idx'::int8, attempts = :'attempts'::int4, rounds = w.rounds + 1
      FROM free
     WHERE w.name = free.name
    RETURNING w.name
  )
SELECT EXISTS (SELECT FROM mine) AS holds, EXISTS (SELECT FROM moved) AS moved;
