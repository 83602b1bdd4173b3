-- Writes workers of a pod, and removes some: one statement for many.
--
-- Only the pod itself writes, while its incarnation is in the roster (L5). The key-share lock on its row keeps a burial
-- from passing in between. Beats pass, and a burial does not wait: it skips the row and tries again. A write whose number
-- is not higher than that of the pod's last one comes too late, and changes nothing.
--
-- A row that another transaction has locked is passed over (L12). The pod writes it again later.
--
-- Arguments:
--   own      uuid    the incarnation of the pod
--   number   int8    the number of this write
--   puts     jsonb   the workers to write: an array of objects with the members of `given` below
--   removed  uuid[]  the workers to remove
--   tells    bool    whether to notify the other pods of what is written
--   owes     bool    whether to notify them in any case
--
-- Returns one row: whether the write was accepted, whether it changed something, whether it notified, the workers that were
-- written with their marks and their liveness, and those of `removed` that this pod has no row of any more.
\set worker_mark `cat part/worker_mark.sql`
WITH
  me AS MATERIALIZED (
    SELECT p.pod_id, p.incarnation FROM :"schema".studio_pods p WHERE p.incarnation = :'own'::uuid FOR KEY SHARE
  ),
  numbered AS (
    INSERT INTO :"schema".studio_worker_pods AS r (incarnation, published)
    SELECT me.incarnation, :'number'::int8 FROM me
        ON CONFLICT (incarnation) DO UPDATE SET published = EXCLUDED.published WHERE r.published < EXCLUDED.published
    RETURNING r.report
  ),
  given AS MATERIALIZED (
    SELECT g.worker_id, g.url, g.health, g.spec, g.health_check, g.reported, o.worker_id IS NOT NULL AS is_there
      FROM jsonb_to_recordset(:'puts'::jsonb)
           AS g (worker_id uuid, url text, health text, spec jsonb, health_check jsonb, reported bool)
     CROSS JOIN numbered
      -- One look into the index for each; without OFFSET the planner may read the whole table.
      LEFT JOIN LATERAL (SELECT o.worker_id
                           FROM :"schema".studio_workers o
                          WHERE o.worker_id = g.worker_id
                         OFFSET 0) o ON true
  ),
  locked AS MATERIALIZED (
    SELECT w.worker_id
      FROM :"schema".studio_workers w
     WHERE w.worker_id = ANY (ARRAY(SELECT given.worker_id FROM given) || :'removed'::uuid[])
     ORDER BY w.worker_id
       FOR UPDATE SKIP LOCKED
  ),
  put AS (
    INSERT INTO :"schema".studio_workers AS w
           (worker_id, url, owner_pod, owner_incarnation, health, liveness, reported_at, spec, health_check, since_report)
    SELECT g.worker_id, g.url, me.pod_id, me.incarnation, g.health,
           CASE WHEN g.reported THEN 'active' ELSE 'inactive' END,
           CASE WHEN g.reported THEN clock_timestamp() END, g.spec, g.health_check,
           -- A report that began before does not know the worker, so it does not name it as unprobed. Only the one
           -- after it may count.
           CASE WHEN g.reported THEN numbered.report ELSE numbered.report + 1 END
      FROM given g
     CROSS JOIN me
     CROSS JOIN numbered
     WHERE NOT g.is_there OR EXISTS (SELECT FROM locked WHERE locked.worker_id = g.worker_id)
     ORDER BY g.worker_id
        ON CONFLICT (worker_id) DO UPDATE
       SET url = EXCLUDED.url, owner_pod = EXCLUDED.owner_pod, owner_incarnation = EXCLUDED.owner_incarnation,
           health = EXCLUDED.health, health_check = EXCLUDED.health_check,
           -- The same spec stays where it is, out of line: only the small part of the row is written again.
           spec = CASE WHEN w.spec = EXCLUDED.spec THEN w.spec ELSE EXCLUDED.spec END,
           -- Without a new report, the last one counts.
           reported_at = CASE WHEN EXCLUDED.reported_at IS NULL AND w.owner_incarnation = EXCLUDED.owner_incarnation
                              THEN w.reported_at ELSE EXCLUDED.reported_at END,
           since_report = CASE WHEN EXCLUDED.reported_at IS NULL AND w.owner_incarnation = EXCLUDED.owner_incarnation
                               THEN w.since_report ELSE EXCLUDED.since_report END,
           -- The first report makes the worker active. From then on, only the monitor writes this.
           liveness = CASE WHEN w.owner_incarnation = EXCLUDED.owner_incarnation AND w.reported_at IS NOT NULL
                           THEN w.liveness ELSE EXCLUDED.liveness END
    RETURNING w.worker_id, :worker_mark AS mark, w.liveness
  ),
  gone AS (
    DELETE FROM :"schema".studio_workers w
     USING me, numbered, locked
     WHERE w.worker_id = locked.worker_id
       AND w.worker_id = ANY (:'removed'::uuid[])
       AND w.owner_pod = me.pod_id
    RETURNING w.worker_id
  ),
  absent AS MATERIALIZED (
    SELECT removed.worker_id
      FROM unnest(:'removed'::uuid[]) AS removed (worker_id)
     CROSS JOIN numbered
     CROSS JOIN me
     WHERE NOT EXISTS (SELECT FROM :"schema".studio_workers w
                        WHERE w.worker_id = removed.worker_id AND w.owner_pod = me.pod_id)
  ),
  told AS MATERIALIZED (
    SELECT pg_notify(:"schema".studio_channel(), 'workers')
     WHERE :'owes'::bool OR (:'tells'::bool AND (EXISTS (SELECT FROM put) OR EXISTS (SELECT FROM gone)))
  )
SELECT EXISTS (SELECT FROM numbered) AS accepted,
       EXISTS (SELECT FROM put) OR EXISTS (SELECT FROM gone) AS changed,
       EXISTS (SELECT FROM told) AS told,
       ARRAY(SELECT put.worker_id FROM put ORDER BY put.worker_id) AS written,
       ARRAY(SELECT put.mark FROM put ORDER BY put.worker_id) AS marks,
       ARRAY(SELECT put.liveness FROM put ORDER BY put.worker_id) AS liveness,
       ARRAY(SELECT gone.worker_id FROM gone) || ARRAY(SELECT absent.worker_id FROM absent) AS removed;
