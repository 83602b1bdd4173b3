  -- The last owner `w` crashed under the run `r` (`protocol::poison`). An owner that never began the run does not
  -- count.
  (w.reason = ANY (:'crashes'::text[]) AND r.attempt > 0)
