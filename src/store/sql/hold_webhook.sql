-- Makes this pod the one that delivers the alerts to an endpoint. An endpoint that is new begins at the end of the log.
--
-- Arguments:
--   own    uuid  the incarnation of the pod
--   name   text  the name of the endpoint
--   stuck  int8  the number of the present deliverer's last round, if this pod saw that number stand still; or else NULL
--
-- Returns how far the alerts are delivered, and how many attempts for the next one were begun. No row: another pod
-- delivers, or another transaction has locked the row.
WITH
  me AS MATERIALIZED (
    SELECT p.incarnation FROM :"schema".studio_pods p WHERE p.incarnation = :'own'::uuid
  ),
  free AS MATERIALIZED (
    SELECT w.name
      FROM :"schema".studio_webhooks w CROSS JOIN me
     WHERE w.name = :'name'::text
       AND (w.incarnation IS NULL
            OR w.incarnation = me.incarnation
            OR NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = w.incarnation)
            OR w.rounds = :'stuck'::int8)
       FOR NO KEY UPDATE OF w SKIP LOCKED
  ),
  held AS (
    UPDATE :"schema".studio_webhooks w
       SET incarnation = me.incarnation, rounds = w.rounds + 1
      FROM free CROSS JOIN me
     WHERE w.name = free.name
    RETURNING w.idx, w.attempts
  ),
  made AS (
    INSERT INTO :"schema".studio_webhooks AS w (name, idx, incarnation, rounds)
    SELECT :'name'::text, COALESCE((SELECT max(e.idx) FROM :"schema".studio_pod_events e), 0), me.incarnation, 1
      FROM me
     WHERE NOT EXISTS (SELECT FROM :"schema".studio_webhooks o WHERE o.name = :'name'::text)
        ON CONFLICT (name) DO NOTHING
    RETURNING w.idx, w.attempts
  )
SELECT held.idx, held.attempts FROM held
 UNION ALL
SELECT made.idx, made.attempts FROM made;
