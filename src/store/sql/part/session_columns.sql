s.incarnation, s.pod_id, s.began_at, s.ended_at, s.reason, s.buried_by, s.cause,
       s.labels, s.last_heartbeat_at, s.runs_served, s.counters, s.exit_code, s.exit_signal
