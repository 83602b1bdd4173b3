  -- The columns that a probe returns for the rows in `probed`.
  --
  -- The witness lock is probed only if the liveness lock was free. A held liveness lock already proves that the pod
  -- lives. This order also means that one of two concurrent probers gets both locks.
  newest AS MATERIALIZED (
    SELECT COALESCE(max(e.idx), 0) AS idx FROM :"schema".studio_pod_events e
  )
SELECT r.pod_id, r.incarnation, r.session,
       r.state = 'draining' AS draining,
       r.state = 'draining' AND r.stopped AS stopped,
       r.lock_key, r.witness_key, r.drain_requested,
       r.free AS liveness_free,
       CASE WHEN NOT r.free THEN false
            WHEN r.share THEN pg_try_advisory_xact_lock_shared(r.witness_key)
            ELSE pg_try_advisory_xact_lock(r.witness_key)
       END AS witness_free,
       n.idx AS version,
       r.evicted,
       EXTRACT(EPOCH FROM clock_timestamp() - r.beat_at)::float8 AS beat_age_s,
       r.lease_ms, r.self_fence_ms, r.beat_ms
  FROM probed r
 CROSS JOIN newest n
