-- Says which backend answers, and whether it still holds a session lock that it took twice (`lock_again.sql`).
--
-- Only the holder of a session lock can release it. The lock was taken twice, so one release does not free it, and it
-- is taken again at once. pg_locks would also show it, but reading that view costs as much as all sessions of the
-- server have locks.
--
-- Arguments:
--   key  int8  the key of the lock
--
-- Returns one row.
SELECT pg_backend_pid() AS pid,
       CASE WHEN pg_advisory_unlock(:'key'::int8) THEN pg_try_advisory_lock(:'key'::int8) ELSE false END AS holds;
