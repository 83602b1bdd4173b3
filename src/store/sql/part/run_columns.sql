  -- The columns of a run `r` in a list of runs, with the owners `w` that died under it. A long error is cut.
  -- `describe_run.sql` reads all of it.
  r.run_id, r.kind, r.key, r.state, r.owner_pod, r.owner_incarnation, r.fence, r.attempt, r.crashes, r.created_at,
  r.finished_at, r.movable,
  CASE WHEN char_length(r.error) > 1000 THEN left(r.error, 1000) || '…' ELSE r.error END AS error_beginning,
  w.owner_pods, w.owner_incarnations, w.owner_reasons, w.owner_ends
