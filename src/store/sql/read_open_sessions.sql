-- Reads sessions whose end nobody has recorded, for scores, a page at a time. One whose incarnation is not in the roster ended
-- when it last wrote samples, or when it began.
--
-- Arguments:
--   label     text         the label to score by; `` for none
--   slices    int4         into how many slices the keys are divided
--   slice     int4         which one is wanted, from 0 on
--   after_at  timestamptz  when the last session of the page before began; `-infinity` for the first page
--   after_id  uuid         that session; the nil UUID for the first page
--   most      int8         how many at most
--
-- Returns a row for each session, in the order of their begins.
\set score_key `cat part/score_key.sql`
\set in_slice `cat part/in_slice.sql`
SELECT k.key, k.began_at, k.incarnation, k.began_at AS place,
       CASE WHEN p.incarnation IS NULL THEN GREATEST(k.last_heartbeat_at, k.began_at) END AS ended_at,
       CASE WHEN p.incarnation IS NULL THEN 'lost' END AS reason
  FROM (SELECT :score_key AS key, s.began_at, s.ended_at, s.last_heartbeat_at, s.incarnation
          FROM :"schema".studio_pod_sessions s) k
  LEFT JOIN :"schema".studio_pods p ON p.incarnation = k.incarnation
 WHERE k.ended_at IS NULL
   AND k.began_at >= COALESCE(:'after_at'::timestamptz, '-infinity'::timestamptz)
   AND (k.began_at, k.incarnation) > (COALESCE(:'after_at'::timestamptz, '-infinity'::timestamptz), :'after_id'::uuid)
   -- A row of a hand's making must not stop the scores of all others.
   AND isfinite(k.began_at) AND isfinite(COALESCE(k.last_heartbeat_at, k.began_at))
   AND :in_slice
 ORDER BY k.began_at, k.incarnation
 LIMIT :'most'::int8;
