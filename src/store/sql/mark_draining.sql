-- Marks the row of a pod that begins a clean stop, once, and writes the event (L4).
--
-- Arguments:
--   own  uuid  the incarnation of the pod
--
-- Returns one row, or none if the row is gone or was marked before.
WITH
  marked AS (
    UPDATE :"schema".studio_pods p
       SET state = 'draining'
     WHERE p.incarnation = :'own'::uuid
       AND p.state = 'active'
    RETURNING p.pod_id, p.incarnation, p.drain_requested
  )
SELECT :"schema".studio_append_event('draining'::text, m.pod_id, m.incarnation, m.pod_id,
         jsonb_build_object('requested_by', m.drain_requested)) AS idx
  FROM marked m;
