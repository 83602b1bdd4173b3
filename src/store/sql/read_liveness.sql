-- Reads what is known of one pod now. It reads no locks: a pod that has died stays in the roster until it is buried.
--
-- Arguments:
--   pod  text  the pod's name
--
-- Returns one row, or none if the name was never seen, or nothing of it is left. Columns of what is missing are NULL.
\set sample_columns `cat part/sample_columns.sql`
\set reliability_columns `cat part/reliability_columns.sql`
SELECT p.incarnation AS own_incarnation, p.state, p.started_at, p.beat_at, p.version, p.labels, p.cordoned_by,
       p.drain_requested,
       s.incarnation AS last_incarnation, s.began_at, s.last_heartbeat_at, s.runs_served, s.counters,
       e.ended_at, e.reason, e.cause, e.buried_by, e.exit_code, e.exit_signal,
       :sample_columns,
       r.pod_id AS scored_as, :reliability_columns
  FROM (SELECT :'pod'::text AS pod_id) w
  LEFT JOIN :"schema".studio_pods p ON p.pod_id = w.pod_id
  LEFT JOIN LATERAL (
       SELECT * FROM :"schema".studio_pod_sessions x
        WHERE x.pod_id = w.pod_id ORDER BY x.began_at DESC, x.incarnation DESC LIMIT 1) s ON true
  LEFT JOIN LATERAL (
       SELECT * FROM :"schema".studio_pod_sessions x
        WHERE x.pod_id = w.pod_id AND x.ended_at IS NOT NULL
        ORDER BY x.began_at DESC, x.incarnation DESC LIMIT 1) e ON true
  LEFT JOIN LATERAL (
       SELECT * FROM :"schema".studio_pod_heartbeats x
        WHERE x.pod_id = w.pod_id ORDER BY x.sampled_at DESC LIMIT 1) h ON true
  -- By the label of the newest roll-up, as part/score_key.sql names the rows. A name without the label may be a value of the
  -- label itself.
  LEFT JOIN :"schema".studio_pod_reliability r
         ON r.pod_id = coalesce(nullif(left(coalesce(p.labels, s.labels) ->> (
              SELECT nullif(u.score_by, '') FROM :"schema".studio_roll_ups u WHERE u.what = 'reliability'), 512), ''),
              w.pod_id)
 WHERE coalesce(p.pod_id, s.pod_id, h.pod_id, r.pod_id) IS NOT NULL;
