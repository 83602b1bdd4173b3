-- The canary: tries to take a key that another session of ours holds, and releases it if the server granted it.
--
-- Arguments:
--   key  int8
--
-- Returns one row. `was_granted` is true if the server granted the lock twice: session locks protect nothing then.
SELECT CASE WHEN pg_try_advisory_lock(:'key'::int8) THEN pg_advisory_unlock(:'key'::int8)
            ELSE false
       END AS was_granted;
