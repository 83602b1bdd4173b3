-- Says which backend answers, and whether it still holds a session lock that it took twice (`lock_again.sql`).
--
-- Arguments:
--   lock_key  int8  the key of the lock
--
-- Returns one row.
\set holds_twice `cat part/holds_twice.sql`
SELECT pg_backend_pid() AS pid,
       :holds_twice AS holds;
