  -- Whether this session holds the session lock `lock_key`, which it took twice (`lock_again.sql`).
  --
  -- Only the holder of a session lock can release it. The lock was taken twice, so one release does not free it, and it
  -- is taken again at once. pg_locks would also show it, but reading that view costs as much as all sessions of the
  -- server have locks.
  CASE WHEN pg_advisory_unlock(:'lock_key'::int8) THEN pg_try_advisory_lock(:'lock_key'::int8) ELSE false END
