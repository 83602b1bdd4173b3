  -- L5: the owner that `w` names, under its fence, still has the run `r`.
  r.run_id = w.run_id
  AND r.owner_incarnation = w.owner
  AND r.fence = w.fence
  -- It goes on. Not by its state: the server would then read the index of all runs that go on, because it expects few.
  AND r.finished_at IS NULL
