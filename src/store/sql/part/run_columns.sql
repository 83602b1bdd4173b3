  -- What lists of runs show of a run `r`, with the owners `w` that died with it. A long error is cut: it is read in
  -- full with the run itself.
  r.run_id, r.kind, r.key, r.state, r.owner_pod, r.owner_incarnation, r.fence, r.attempt, r.crashes, r.created_at,
  r.finished_at,
  CASE WHEN char_length(r.error) > 1000 THEN left(r.error, 1000) || '…' ELSE r.error END AS error_beginning,
  w.owner_pods, w.owner_incarnations, w.owner_reasons, w.owner_ends
