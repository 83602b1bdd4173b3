  -- The pod `p` has no open session, or no other transaction has locked the session's row. This statement locks that
  -- row then. A burial changes both rows of a pod, and waits for neither (L12).
  (NOT EXISTS (SELECT FROM :"schema".studio_pod_sessions s WHERE s.incarnation = p.incarnation AND s.ended_at IS NULL)
   OR EXISTS (SELECT FROM :"schema".studio_pod_sessions s
               WHERE s.incarnation = p.incarnation AND s.ended_at IS NULL
                 FOR NO KEY UPDATE SKIP LOCKED))
