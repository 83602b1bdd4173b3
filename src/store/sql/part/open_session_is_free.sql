  -- The pod `p` has no open session, or nobody else has locked the row of it, and this statement locks it. A burial
  -- changes both rows of a pod, and waits for neither (L12).
  (NOT EXISTS (SELECT FROM :"schema".studio_pod_sessions s WHERE s.incarnation = p.incarnation AND s.ended_at IS NULL)
   OR EXISTS (SELECT FROM :"schema".studio_pod_sessions s
               WHERE s.incarnation = p.incarnation AND s.ended_at IS NULL
                 FOR NO KEY UPDATE SKIP LOCKED))
