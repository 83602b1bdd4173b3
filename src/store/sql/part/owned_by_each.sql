  -- L5: the owner that `w` names, under its fence, still has the run `r`.
  r.run_id = w.run_id
  AND r.owner_incarnation = w.owner
  AND r.fence = w.fence
  AND r.state = 'running'
