  -- L5: the owner that `w` names, under its fence, still has the run `r`.
  r.run_id = w.run_id
  AND r.owner_incarnation = w.owner
  AND r.fence = w.fence
  -- It goes on. A condition on its state would let the server read the index of all runs that go on.
  AND r.finished_at IS NULL
