-- Runs under any search_path, as `identify.sql`.
--
-- Reads the facts of the server that an administrator may change by a reload while a session lives.
--
-- Returns one row.
\set server_facts `cat part/server_facts.sql`
SELECT
  :server_facts;
