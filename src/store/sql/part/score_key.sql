  -- Whose score the session `s` counts for: the value of the label, or else the pod's name.
  COALESCE(NULLIF(left(s.labels ->> NULLIF(:'label'::text, ''), 512), ''), s.pod_id)
