  -- The key of the advisory lock `l`, which pg_locks shows as two halves.
  ((l.classid::int8 << 32) | l.objid::int8)
