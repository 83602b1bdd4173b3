-- Finds which pods the history knows from before a time.
--
-- Arguments:
--   pods    text[]       the names of the pods
--   before  timestamptz  the time
--
-- Returns a row for each that had a session then.
SELECT k.pod_id FROM unnest(:'pods'::text[]) AS k (pod_id)
 WHERE EXISTS (SELECT FROM :"schema".studio_pod_sessions s
                WHERE s.pod_id = k.pod_id AND s.began_at < :'before'::timestamptz);
