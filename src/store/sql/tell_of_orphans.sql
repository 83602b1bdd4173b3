-- Tells pods of runs that nobody owns. Without such a run it sends nothing, because any role can notify, and so make pods
-- run this statement (L11).
--
-- Arguments:
--   own        uuid    the incarnation that tells; it is not chosen
--   kinds      text[]  for each of these kinds one pod with a handler and room is chosen; if none is found, every pod is
--                      told
--   pods       text[]  these pods are told too, unless every pod is told
--   everybody  bool    every pod is told, and none is chosen
--   still      text[]  every pod is told if a run of one of these kinds has no owner
--   sample     int8    how many pods are looked at for each kind
--
-- Returns one row: how many notices were sent. These are only hints (L11): the next recovery pass of any pod finds the
-- runs (L6).
WITH
  ownerless AS MATERIALIZED (
    SELECT w.kind, w.chooses
      FROM (SELECT k.kind, true AS chooses FROM unnest(:'kinds'::text[]) AS k (kind)
            UNION
            SELECT k.kind, false FROM unnest(:'still'::text[]) AS k (kind)) AS w
     WHERE EXISTS (SELECT FROM :"schema".studio_runs r
                    WHERE r.state = 'running' AND r.owner_incarnation IS NULL AND r.kind = w.kind)
  ),
  waiting AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM :"schema".studio_runs r
                    WHERE r.state = 'running' AND r.owner_incarnation IS NULL) AS there
  ),
  -- Takes `sample` random pods, and chooses the one with the fewest runs. So only their runs are counted, and pods that
  -- tell at the same time choose different ones. If all of them are full, every pod is told.
  chosen AS MATERIALIZED (
    SELECT w.kind, c.pod_id
      FROM ownerless w
      LEFT JOIN LATERAL (
        SELECT l.pod_id
          FROM (SELECT s.pod_id, s.capacity,
                       (SELECT count(*)
                          FROM :"schema".studio_runs r
                         WHERE r.state = 'running' AND r.owner_incarnation = s.incarnation) AS running
                  FROM (SELECT p.pod_id, p.incarnation, p.capacity
                          FROM :"schema".studio_pods p
                         WHERE p.state = 'active'
                           AND p.evicted IS NULL
                           AND p.cordoned_by IS NULL
                           AND p.incarnation <> :'own'::uuid
                           AND (p.kinds IS NULL OR w.kind = ANY (p.kinds))
                         ORDER BY random()
                         LIMIT :'sample'::int8) AS s
                OFFSET 0) AS l
         WHERE l.capacity IS NULL OR l.running < l.capacity
         ORDER BY l.running
         LIMIT 1) AS c ON true
     WHERE w.chooses
  ),
  everyone AS MATERIALIZED (
    SELECT (:'everybody'::bool AND w.there)
           OR EXISTS (SELECT FROM ownerless w WHERE NOT w.chooses)
           OR EXISTS (SELECT FROM chosen c WHERE c.pod_id IS NULL) AS is_told
      FROM waiting w
  ),
  told AS MATERIALIZED (
    -- A pod of an older version has no channel of its own, and does not know the word.
    SELECT pg_notify(COALESCE(h.channel, :"schema".studio_channel()),
                     CASE WHEN h.channel IS NULL THEN 'recover' ELSE 'take' END) AS notice
      FROM (SELECT c.pod_id FROM chosen c
            UNION
            SELECT unnest(:'pods'::text[])) AS t
      JOIN :"schema".studio_pods p ON p.pod_id = t.pod_id
     CROSS JOIN LATERAL (SELECT CASE WHEN p.channel_of = p.incarnation THEN p.channel END AS channel) AS h
     WHERE NOT (SELECT e.is_told FROM everyone e)
       AND (SELECT w.there FROM waiting w)
    UNION ALL
    SELECT pg_notify(:"schema".studio_channel(), 'recover')
      FROM everyone e
     WHERE e.is_told
  )
SELECT count(*) AS notices FROM told;
