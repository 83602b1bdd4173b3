-- Closes incarnations that have ended although nobody recorded their end: they are open in the history and not in the
-- roster. An incarnation registers both rows in one transaction, so the row of a living pod is never closed. No row that
-- another transaction has locked is waited for.
--
-- Arguments:
--   most  int8  how many incarnations at most
--
-- Returns a row for each incarnation that was closed.
WITH
  stray AS MATERIALIZED (
    SELECT s.incarnation
      FROM :"schema".studio_pod_sessions s
     WHERE s.ended_at IS NULL
       AND NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = s.incarnation)
     ORDER BY s.began_at
     LIMIT :'most'::int8
       FOR NO KEY UPDATE SKIP LOCKED
  )
UPDATE :"schema".studio_pod_sessions s
   -- The pod lived at its last sample. Without one, the end is dated by its discovery. Scores let it end when it began until
   -- then (read_open_sessions.sql), because they do not know when it will be discovered.
   SET ended_at = greatest(s.began_at, COALESCE(s.last_heartbeat_at, clock_timestamp())),
       reason = 'lost',
       cause = COALESCE(s.cause, 'unrecorded')
  FROM stray
 WHERE s.incarnation = stray.incarnation
   AND s.ended_at IS NULL
RETURNING s.incarnation, s.pod_id;
