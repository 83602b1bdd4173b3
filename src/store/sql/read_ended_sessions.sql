-- Reads sessions that have ended, for scores, a page at a time.
--
-- Arguments:
--   label     text         the label to score by; `` for none
--   slices    int4         into how many slices the keys are divided
--   slice     int4         which one is wanted, from 0 on
--   after_at  timestamptz  when the last session of the page before ended; or when to begin
--   after_id  uuid         that session; the nil UUID for the first page
--   most      int8         how many at most
--
-- Returns a row for each session, in the order of their ends.
\set score_key `cat part/score_key.sql`
\set in_slice `cat part/in_slice.sql`
SELECT k.key, k.began_at, k.ended_at, k.reason, k.incarnation, k.ended_at AS place
  FROM (SELECT :score_key AS key, s.began_at, s.ended_at, s.incarnation,
               -- A supervisor stops its pod in order after the command has failed. That is a failure all the same.
               CASE WHEN s.reason = 'shutdown' AND s.cause IN ('killed', 'exited', 'out_of_memory') THEN 'lost'
                    ELSE s.reason END AS reason
          FROM :"schema".studio_pod_sessions s) k
 -- The index serves this condition. The one below is exact.
 WHERE k.ended_at >= :'after_at'::timestamptz
   AND (k.ended_at, k.incarnation) > (:'after_at'::timestamptz, :'after_id'::uuid)
   -- A row of a hand's making must not stop the scores of all others.
   AND isfinite(k.ended_at) AND isfinite(k.began_at)
   AND :in_slice
 ORDER BY k.ended_at, k.incarnation
 LIMIT :'most'::int8;
