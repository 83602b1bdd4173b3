  -- L5, L6: the row has not changed since an earlier statement read it, and its owner is not in the roster. An owner
  -- may also claim its own run, to begin it again.
  r.run_id = w.run_id
  AND r.finished_at IS NULL
  AND r.owner_incarnation IS NOT DISTINCT FROM w.expected
  AND r.fence = w.fence
  AND (w.expected IS NOT DISTINCT FROM :'own'::uuid
       OR NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = w.expected))
