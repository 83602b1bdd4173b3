-- Takes a session lock that this session holds a second time, for `ping_and_check.sql`.
--
-- Arguments:
--   key  int8  the key of the lock
--
-- Returns one row.
SELECT pg_try_advisory_lock(:'key'::int8) AS granted;
