  -- The columns that a probe reads of each row of the roster.
  SELECT p.pod_id, p.incarnation, p.session, p.state, p.lock_key, p.witness_key, p.drain_requested, p.evicted,
         p.beat_at, p.beat_ms, p.lease_ms, p.self_fence_ms, p.stopped
    FROM :"schema".studio_pods p
