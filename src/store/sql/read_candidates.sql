-- Reads the input of a recovery pass in one snapshot: the pod's own running runs, orphans that the pod could claim, and
-- the load of all pods that could claim them.
--
-- Arguments:
--   own           uuid    the incarnation that recovers
--   kinds         text[]  the kinds that this pod has handlers for
--   limit         int8    how many orphans at most, the oldest first
--   passed_over   uuid[]  orphans that are left out
--   suspect_from  int4    at this number of crashes in a row a run is a suspect, and is left out
--   crashes       text[]  the reasons that count as a crash of the owner
--   whole         bool    whether orphans that still name an owner are looked for. They are found only by reading all
--                         running runs; those without an owner have an index
--
-- Returns a row for each running run of `own`, then one row for the fleet (`run_id` is NULL), then a row for each
-- orphan. The row for the fleet has the number of orphans. For each pod with a handler for one of them, it has how many
-- runs the pod owns and how many it may own. `me` is the place of `own` among those pods, from 1 on; NULL if it is not
-- one of them. `pods` has their names. Without orphans, or without such pods, there is no such row. A cordoned pod claims
-- no orphan: it gets only the rows of its own runs.
\set crashed `cat part/crashed.sql`
WITH
  -- L6: an orphan is a running run whose owner is NULL or not in the roster. A run of this pod is not an orphan, even
  -- if the pod's row is gone.
  abandoned AS MATERIALIZED (
    SELECT r.run_id, r.kind, r.owner_incarnation, r.fence, r.attempt, r.crashes, r.created_at
      FROM :"schema".studio_runs r
     WHERE r.state = 'running'
       AND r.owner_incarnation IS NULL
    UNION ALL
    SELECT r.run_id, r.kind, r.owner_incarnation, r.fence, r.attempt, r.crashes, r.created_at
      FROM :"schema".studio_runs r
     WHERE r.state = 'running'
       AND r.owner_incarnation NOT IN (SELECT p.incarnation FROM :"schema".studio_pods p)
       AND r.owner_incarnation <> :'own'::uuid
       AND :'whole'::bool
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
            OR (r.crashes < :'suspect_from'::int4) <> EXISTS (
                 SELECT FROM :"schema".studio_pod_sessions w
                  WHERE w.incarnation = r.owner_incarnation AND :crashed))
  ),
  oldest AS MATERIALIZED (
    SELECT * FROM orphans o ORDER BY o.created_at, o.run_id LIMIT :'limit'::int8
  ),
  sum AS MATERIALIZED (
    SELECT sum(k.orphans)::int8 AS orphans, array_agg(k.kind) AS kinds
      FROM (SELECT o.kind, count(*) AS orphans FROM orphans o GROUP BY o.kind) AS k
  ),
  -- The fleet is counted only if there are orphans.
  takers AS MATERIALIZED (
    SELECT p.incarnation,
           p.pod_id,
           p.capacity,
           (SELECT count(*)
              FROM :"schema".studio_runs r
             WHERE r.state = 'running' AND r.owner_incarnation = p.incarnation) AS running
      FROM :"schema".studio_pods p
     WHERE p.state = 'active'
       AND p.cordoned_by IS NULL
       AND EXISTS (SELECT FROM oldest)
       AND (p.kinds IS NULL OR p.kinds && (SELECT m.kinds FROM sum m))
  )
(
  SELECT r.run_id, r.kind, r.owner_incarnation, r.fence, r.attempt, r.crashes, false AS crashed,
         NULL::int8 AS orphans, NULL::int8[] AS running, NULL::int4[] AS capacity, NULL::text[] AS pods, NULL::int4 AS me
    FROM :"schema".studio_runs r
   WHERE r.state = 'running' AND r.owner_incarnation = :'own'::uuid
)
UNION ALL
(
  SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL,
         (SELECT m.orphans FROM sum m),
         array_agg(k.running ORDER BY k.incarnation),
         array_agg(k.capacity ORDER BY k.incarnation),
         array_agg(k.pod_id ORDER BY k.incarnation),
         array_position(array_agg(k.incarnation ORDER BY k.incarnation), :'own'::uuid)
    FROM takers k
  HAVING count(*) > 0
)
UNION ALL
(
  SELECT r.run_id, r.kind, r.owner_incarnation, r.fence, r.attempt, r.crashes, :crashed IS TRUE,
         NULL, NULL, NULL, NULL, NULL
    FROM oldest r
    LEFT JOIN :"schema".studio_pod_sessions w ON w.incarnation = r.owner_incarnation
   ORDER BY r.created_at, r.run_id
);
