-- Runs under any search_path. So each operator, function and type is named with its schema, and each literal has a
-- type.
--
-- Identifies the server's process behind a session, and reads the facts of the server on which the protocol depends.
--
-- Returns one row. `backend_start` is NULL if the server hides it from the current role. The function returns only the
-- row of this backend. The view pg_stat_activity makes a row for each backend of the server first.
\set server_facts `cat part/server_facts.sql`
SELECT
  a.pid,
  a.backend_start,
  pg_catalog.pg_is_in_recovery() AS is_standby,
  pg_catalog.current_setting('server_version_num'::pg_catalog.text)::integer AS version,
  pg_catalog.inet_client_port() AS client_port,
  pg_catalog.inet_server_port() AS server_port,
  pg_catalog.pg_postmaster_start_time() AS server_started,
  :server_facts
  FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()) a;
