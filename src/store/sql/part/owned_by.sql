  -- L5: this owner, under this fence, still has the run `r`.
  r.run_id = :'run_id'::uuid
  AND r.owner_incarnation = :'own'::uuid
  AND r.fence = :'fence'::int8
  AND r.state = 'running'
