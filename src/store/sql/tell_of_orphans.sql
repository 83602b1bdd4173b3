-- Tells pods of runs that nobody owns.
--
-- Arguments:
--   own        uuid    the incarnation that tells; it is not chosen
--   kinds      text[]  for each of these kinds one pod with a handler and room is chosen
--   pods       text[]  these pods are told as well
--   everybody  bool    every pod is told, and none is chosen
--   sample     int8    how many pods are looked at for each kind
--
-- Returns one row: how many notices were sent. These are only hints (L11): the next recovery pass of any pod finds the
-- runs (L6).
WITH
  -- Of a few random pods, the one that runs the least. So the cost does not grow with the fleet, and pods that tell at
  -- the same time choose different ones.
  chosen AS MATERIALIZED (
    SELECT c.pod_id
      FROM unnest(:'kinds'::text[]) AS w (kind)
     CROSS JOIN LATERAL (
       SELECT l.pod_id
         FROM (SELECT s.pod_id, s.capacity,
                      (SELECT count(*)
                         FROM :"schema".studio_runs r
                        WHERE r.state = 'running' AND r.owner_incarnation = s.incarnation) AS running
                 FROM (SELECT p.pod_id, p.incarnation, p.capacity
                         FROM :"schema".studio_pods p
                        WHERE p.state = 'active'
                          AND p.incarnation <> :'own'::uuid
                          AND (p.kinds IS NULL OR w.kind = ANY (p.kinds))
                        ORDER BY random()
                        LIMIT :'sample'::int8) AS s) AS l
        WHERE l.capacity IS NULL OR l.running < l.capacity
        ORDER BY l.running
        LIMIT 1) AS c
    UNION
    SELECT unnest(:'pods'::text[])
  ),
  told AS MATERIALIZED (
    -- A pod of an older version has no channel of its own, and does not know the word.
    SELECT pg_notify(COALESCE(p.channel, :"schema".studio_channel()),
                     CASE WHEN p.channel IS NULL THEN 'recover' ELSE 'take' END) AS notice
      FROM chosen c
      JOIN :"schema".studio_pods p ON p.pod_id = c.pod_id
     WHERE NOT :'everybody'::bool
    UNION ALL
    SELECT pg_notify(:"schema".studio_channel(), 'recover')
     WHERE :'everybody'::bool
  )
SELECT count(*) AS notices FROM told;
