-- Describes one incarnation.
--
-- Arguments:
--   wanted  uuid  the incarnation
--
-- Returns one row, or none if it is not in the history.
\set session_columns `cat part/session_columns.sql`
SELECT :session_columns
  FROM :"schema".studio_pod_sessions s
 WHERE s.incarnation = :'wanted'::uuid;
