-- Finds who holds the lock under which the schema is migrated. Any role of the database can take it.
--
-- Arguments:
--   schema_name  text  the schema of podlock's tables
--
-- Returns one row for each holder, or none.
\set advisory_lock `cat part/advisory_lock.sql`
\set lock_key `cat part/lock_key.sql`
SELECT format('server process %s (role %s, application %s, from %s)', l.pid,
              COALESCE(a.usename, '?'), COALESCE(NULLIF(a.application_name, ''), '?'),
              COALESCE(host(a.client_addr), 'a local socket')) AS holder
  FROM pg_locks l
  LEFT JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE :advisory_lock
   AND l.granted
   AND :lock_key = hashtextextended(:'schema_name'::text, 3);
