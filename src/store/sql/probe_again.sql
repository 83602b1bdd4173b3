-- Probes pods again that an earlier probe found dead. Locks the rows that their burial changes (L2, L3): their rows of
-- the roster and of their open sessions. Skips a pod if another transaction has locked one of its rows, so that it does
-- not delay the others (L12).
--
-- Arguments:
--   own   uuid    the incarnation of this pod, which is not probed
--   keys  int8[]  the liveness keys of the pods
--
-- Returns a row for each pod that was not skipped, as `probe_portion.sql` does.
\set roster_rows `cat part/roster_rows.sql`
\set open_session_is_free `cat part/open_session_is_free.sql`
\set probed `cat part/probed.sql`
WITH
  roster AS MATERIALIZED (
    :roster_rows
     WHERE p.lock_key = ANY (:'keys'::int8[])
       AND :open_session_is_free
     ORDER BY p.lock_key
       FOR UPDATE SKIP LOCKED
  ),
  probed AS MATERIALIZED (
    SELECT r.*, false AS share,
           CASE WHEN r.incarnation = :'own'::uuid THEN false ELSE pg_try_advisory_xact_lock(r.lock_key) END AS free
      FROM roster r
  ),
  :probed;
