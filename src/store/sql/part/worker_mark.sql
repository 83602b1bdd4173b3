  -- A number that stands for this version of the worker `w`. Pods compare such numbers instead of rows.
  uuid_hash_extended(w.worker_id, w.changed_in::text::int8)
