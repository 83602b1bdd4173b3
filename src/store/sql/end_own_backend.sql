-- Ends a backend that was this process's own and that the server may still have. The login role, the pid and the start
-- must be the same, and the backend must still hold the lock of this pod. Otherwise a session pooler may have passed
-- the backend on to another client, or even to this process.
--
-- Arguments:
--   pid      int4         the backend
--   started  timestamptz  when it began: a pid can be reused
--   key      int8         the lock that it held
--
-- Returns a row if the backend was there, and none otherwise. Runs under the login role: the server does not hide a
-- role's own backends from it.
\set advisory_lock `cat part/advisory_lock.sql`
\set lock_key `cat part/lock_key.sql`
SELECT pg_terminate_backend(a.pid) AS ended
  -- One row, where the view pg_stat_activity makes a row for each backend of the server first.
  FROM pg_stat_get_activity(:'pid'::int4) a
 WHERE a.pid = :'pid'::int4
   AND a.backend_start = :'started'::timestamptz
   AND pg_get_userbyid(a.usesysid) = SESSION_USER
   AND a.pid <> pg_backend_pid()
   AND EXISTS (SELECT FROM pg_locks l
                WHERE l.pid = a.pid
                  AND :advisory_lock
                  AND :lock_key = :'key'::int8);
