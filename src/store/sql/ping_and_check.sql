-- Reads which backend answers on this session, and whether it still holds a key.
--
-- Arguments:
--   key  int8
--
-- Returns one row.
SELECT pg_backend_pid() AS pid,
       :"schema".studio_holds(:'key'::int8, pg_backend_pid()) AS holds;
