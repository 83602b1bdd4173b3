-- Reads the input of a recovery pass in one snapshot: the pod's own running runs, orphans that the pod could claim, and
-- the load of all pods that could claim them.
--
-- It reads only what it returns, counts or orders: the rows of own runs and of orphans, one entry of the index for each
-- owner, and the entries of the runs that pods with a handler own. So it must be planned with indexes alone
-- (`pg::txn::BY_INDEX`).
--
-- Arguments:
--   own           uuid    the incarnation that recovers
--   kinds         text[]  the kinds that this pod has handlers for
--   limit         int8    how many orphans at most
--   passed_over   uuid[]  orphans that are left out
--   suspect_from  int4    at this number of crashes in a row a run is a suspect, and is left out
--   crashes       text[]  the reasons that count as a crash of the owner
--   whole         bool    whether orphans that still name an owner are looked for. Those without an owner are found
--                         with fewer steps in the index
--   spare         int8    how many orphans beyond its part the pod gets, so that it can pass some over. NULL: it gets
--                         all orphans, up to the limit
--
-- Returns a row for each running run of `own`, then one row for the fleet (`run_id` is NULL), then a row for each
-- orphan of the pod's list.
--
-- Each pod's list begins at another place among all orphans, the oldest first, and goes round at the end. So pods that
-- read at the same time do not compete for the same orphans. The list has about as many as the pod takes: the equal
-- share of all orphans and of the runs of the pods with room, without the runs that it has.
--
-- The row for the fleet has the number of orphans, and the kinds of those without an owner. For each pod with a handler
-- for one of them, it has how many runs the pod owns and how many it may own. `me` is the place of `own` among those
-- pods, from 1 on; NULL if it is not one of them. `pods` has their names. Without orphans, or without such pods, there
-- is no such row. A cordoned pod claims no orphan: it gets only the rows of its own runs.
\set crashed `cat part/crashed.sql`
WITH RECURSIVE
  -- The owners of running runs. Each step finds the next owner in the index, and reads none of the runs in between.
  named AS (
    (SELECT r.owner_incarnation AS owner
       FROM :"schema".studio_runs r
      WHERE r.state = 'running'
        AND r.owner_incarnation >= '00000000-0000-0000-0000-000000000000'::uuid
        AND :'whole'::bool
      ORDER BY r.owner_incarnation
      LIMIT 1)
    UNION ALL
    SELECT n.owner
      FROM named d
     CROSS JOIN LATERAL (
           SELECT r.owner_incarnation AS owner
             FROM :"schema".studio_runs r
            WHERE r.state = 'running'
              AND r.owner_incarnation > d.owner
            ORDER BY r.owner_incarnation
            LIMIT 1) n
  ),
  -- L6: an orphan is a running run whose owner is NULL or not in the roster. A run of this pod is not an orphan, even
  -- if the pod's row is gone.
  gone AS MATERIALIZED (
    SELECT d.owner, w.reason
      FROM named d
      LEFT JOIN LATERAL (
           SELECT s.reason FROM :"schema".studio_pod_sessions s WHERE s.incarnation = d.owner OFFSET 0) w ON true
     WHERE d.owner <> :'own'::uuid
       AND NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = d.owner OFFSET 0)
  ),
  abandoned AS (
    SELECT r.run_id, r.kind, r.owner_incarnation, r.fence, r.attempt, r.crashes, r.created_at, false AS crashed
      FROM :"schema".studio_runs r
     WHERE r.state = 'running'
       AND r.owner_incarnation IS NULL
    UNION ALL
    SELECT r.run_id, r.kind, r.owner_incarnation, r.fence, r.attempt, r.crashes, r.created_at, :crashed IS TRUE
      FROM gone w
     CROSS JOIN LATERAL (
           SELECT o.*
             FROM :"schema".studio_runs o
            WHERE o.state = 'running'
              AND o.owner_incarnation = w.owner
           OFFSET 0) r
  ),
  orphans AS MATERIALIZED (
    SELECT r.*
      FROM abandoned r
     WHERE r.kind = ANY (:'kinds'::text[])
       AND NOT EXISTS (SELECT FROM :"schema".studio_pods m
                        WHERE m.incarnation = :'own'::uuid AND m.cordoned_by IS NOT NULL)
       -- L12: a run that could not be handled before does not take the place of another.
       AND r.run_id <> ALL (:'passed_over'::uuid[])
       -- No suspects (`protocol::poison`). A run with so many crashes that it is poison is not left out: its claim
       -- quarantines it.
       AND (r.crashes < :'suspect_from'::int4 - 1
            OR (r.crashes < :'suspect_from'::int4) <> r.crashed)
     ORDER BY r.created_at, r.run_id
  ),
  sum AS MATERIALIZED (
    SELECT COALESCE(sum(k.orphans), 0)::int8 AS orphans,
           array_agg(k.kind) AS kinds,
           array_agg(k.kind) FILTER (WHERE k.ownerless) AS ownerless
      FROM (SELECT o.kind, count(*) AS orphans, bool_or(o.owner_incarnation IS NULL) AS ownerless
              FROM orphans o
             GROUP BY o.kind) AS k
  ),
  -- The fleet is counted only if there are orphans.
  takers AS MATERIALIZED (
    SELECT p.incarnation, p.pod_id, p.capacity, l.running,
           p.capacity IS NULL OR l.running < p.capacity AS has_room
      FROM :"schema".studio_pods p
     CROSS JOIN LATERAL (
           SELECT count(*) AS running
             FROM :"schema".studio_runs r
            WHERE r.state = 'running' AND r.owner_incarnation = p.incarnation) l
     WHERE p.state = 'active'
       AND p.cordoned_by IS NULL
       AND (SELECT m.orphans > 0 FROM sum m)
       AND (p.kinds IS NULL OR p.kinds && (SELECT m.kinds FROM sum m))
  ),
  -- Where this pod's list begins, and how many orphans of it this pod would take.
  part AS MATERIALIZED (
    SELECT m.orphans,
           COALESCE(m.orphans * LEAST(k.before, k.pods - 1) / NULLIF(k.pods, 0), 0) AS begins,
           CASE WHEN k.own IS NULL THEN m.orphans
                ELSE GREATEST((m.orphans + k.running + k.pods - 1) / NULLIF(k.pods, 0) - k.own, 0)
           END AS share
      FROM sum m
     CROSS JOIN (
           SELECT count(*) FILTER (WHERE t.has_room) AS pods,
                  count(*) FILTER (WHERE t.has_room AND t.incarnation < :'own'::uuid) AS before,
                  COALESCE(sum(t.running) FILTER (WHERE t.has_room), 0)::int8 AS running,
                  max(t.running) FILTER (WHERE t.incarnation = :'own'::uuid) AS own
             FROM takers t) k
  ),
  size AS MATERIALIZED (
    SELECT p.begins, LEAST(p.orphans, p.share + :'spare'::int8, :'limit'::int8) AS most
      FROM part p
  ),
  listed AS (
    (SELECT *
       FROM orphans
     OFFSET (SELECT z.begins FROM size z)
      LIMIT (SELECT z.most FROM size z))
    UNION ALL
    -- Round the end. What is left of the list is negative if the list ends before all orphans do.
    (SELECT *
       FROM orphans
      LIMIT (SELECT GREATEST(z.begins + z.most - m.orphans, 0) FROM size z CROSS JOIN sum m))
  )
(
  SELECT r.run_id, r.kind, r.owner_incarnation, r.fence, r.attempt, r.crashes, false AS crashed,
         NULL::int8 AS orphans, NULL::text[] AS ownerless, NULL::int8[] AS running, NULL::int4[] AS capacity,
         NULL::text[] AS pods, NULL::int4 AS me
    FROM :"schema".studio_runs r
   WHERE r.state = 'running' AND r.owner_incarnation = :'own'::uuid
)
UNION ALL
(
  SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL,
         (SELECT m.orphans FROM sum m),
         (SELECT m.ownerless FROM sum m),
         array_agg(k.running ORDER BY k.incarnation),
         array_agg(k.capacity ORDER BY k.incarnation),
         array_agg(k.pod_id ORDER BY k.incarnation),
         array_position(array_agg(k.incarnation ORDER BY k.incarnation), :'own'::uuid)
    FROM takers k
  HAVING count(*) > 0
)
UNION ALL
(
  SELECT r.run_id, r.kind, r.owner_incarnation, r.fence, r.attempt, r.crashes, r.crashed,
         NULL, NULL, NULL, NULL, NULL, NULL
    FROM listed r
);
