-- Reads how busy the pods are that take runs of some kinds, for a pod that may have more than its share
-- (`protocol::moves`).
--
-- Arguments:
--   own    uuid    the incarnation of that pod
--   kinds  text[]  the kinds of its runs that may move
--   most   int8    how many pods at most
--
-- Returns a row for each pod that has a handler for one of the kinds and takes runs: its kinds among these, the most runs
-- that it may have, and how many it has and how many of these may move. `waiting` is the same in each row: how many runs
-- of the kinds have no owner in the roster. The pod itself comes first, if it is one of them. A pod that states no kinds
-- is of an older version, and is left out.
WITH
  owned AS MATERIALIZED (
    SELECT r.owner_incarnation AS incarnation,
           count(*) AS running,
           count(*) FILTER (WHERE r.movable) AS movable,
           count(*) FILTER (WHERE r.kind = ANY (:'kinds'::text[])) AS of_kinds
      FROM :"schema".studio_runs r
     WHERE r.state = 'running'
     GROUP BY r.owner_incarnation
  ),
  orphans AS MATERIALIZED (
    SELECT COALESCE(sum(o.of_kinds), 0)::int8 AS runs
      FROM owned o
     WHERE NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = o.incarnation)
  )
SELECT p.incarnation = :'own'::uuid AS is_own,
       ARRAY (SELECT k.kind FROM unnest(:'kinds'::text[]) AS k (kind) WHERE k.kind = ANY (p.kinds)) AS kinds,
       p.capacity,
       COALESCE(o.running, 0) AS running,
       COALESCE(o.movable, 0) AS movable,
       w.runs AS waiting
  FROM :"schema".studio_pods p
  LEFT JOIN owned o ON o.incarnation = p.incarnation
 CROSS JOIN orphans w
 WHERE p.state = 'active'
   AND p.cordoned_by IS NULL
   AND p.evicted IS NULL
   AND p.kinds && :'kinds'::text[]
 ORDER BY p.incarnation <> :'own'::uuid, p.incarnation
 LIMIT :'most'::int8;
