-- The monitor writes the liveness of workers, and an event for each of their owners. It writes no other column.
--
-- Arguments:
--   own       uuid    the incarnation of the monitor
--   by_pod    text    its name
--   liveness  text    'active' or 'inactive'
--   workers   uuid[]  the workers, and for each:
--   owners    uuid[]    its owner, as the monitor read it. With another owner it is passed over.
--
-- Returns a row for each given worker whose row now has this liveness, with its mark. `is_new`: this statement wrote it.
\set worker_mark `cat part/worker_mark.sql`
WITH
  given AS MATERIALIZED (
    SELECT g.worker_id, g.owner
      FROM unnest(:'workers'::uuid[], :'owners'::uuid[]) AS g (worker_id, owner)
     WHERE EXISTS (SELECT FROM :"schema".studio_worker_monitor m WHERE m.incarnation = :'own'::uuid)
  ),
  locked AS MATERIALIZED (
    SELECT w.worker_id
      FROM :"schema".studio_workers w
      JOIN given g ON g.worker_id = w.worker_id AND g.owner = w.owner_incarnation
     WHERE w.liveness <> :'liveness'::text
     ORDER BY w.worker_id
       FOR UPDATE OF w SKIP LOCKED
  ),
  written AS (
    UPDATE :"schema".studio_workers w
       SET liveness = :'liveness'::text
      FROM locked
     WHERE w.worker_id = locked.worker_id
    RETURNING w.worker_id, w.owner_pod, w.owner_incarnation, w.url, :worker_mark AS mark
  ),
  told AS MATERIALIZED (
    SELECT pg_notify(:"schema".studio_channel(), 'workers') WHERE EXISTS (SELECT FROM written)
  ),
  -- The log comes last: appending takes its lock, which is held until COMMIT.
  first AS MATERIALIZED (
    SELECT count(*) AS rows FROM told
  ),
  logged AS MATERIALIZED (
    SELECT :"schema".studio_append_event(CASE :'liveness'::text WHEN 'active' THEN 'workers_active'::text
                                              ELSE 'workers_inactive'::text END,
             o.owner_pod, o.owner_incarnation, :'by_pod'::text,
             jsonb_build_object('workers', o.workers, 'urls', o.urls)::jsonb) AS idx
      FROM (SELECT written.owner_pod, written.owner_incarnation, count(*) AS workers,
                   (array_agg(written.url ORDER BY written.worker_id))[1:10] AS urls
              FROM written
             GROUP BY 1, 2
             ORDER BY 1, 2) o
     CROSS JOIN first
     WHERE first.rows >= 0
  )
SELECT written.worker_id, true AS is_new, written.mark
  FROM written
 WHERE (SELECT count(*) FROM logged) >= 0
 UNION ALL
SELECT w.worker_id, false, :worker_mark
  FROM :"schema".studio_workers w
  JOIN given g ON g.worker_id = w.worker_id AND g.owner = w.owner_incarnation
 WHERE w.liveness = :'liveness'::text;
