-- Probes a portion of the roster: reads its rows, and probes their locks if `probe` is true. The transaction keeps the
-- locks that the probe got. A probe in a statement of its own gets the liveness locks in shared mode: pods that probe at
-- the same time then do not hide a free lock from each other. A burial gets them in exclusive mode.
--
-- A separate part probes, after LIMIT. So it probes only the rows of the portion, and each of them once.
--
-- Arguments:
--   own       uuid  the incarnation of this pod, which is not probed
--   from_key  int8  the least liveness key of the portion
--   upto_key  int8  the greatest
--   most      int8  how many rows at most: each probe needs an entry in the server's lock table (L10)
--   probe     bool  whether to probe; otherwise every lock is returned as held, and the caller treats it as unknown
--   share     bool  whether to get the locks in shared mode
--
-- Returns a row for each pod. `version` is the position of the log's last event. As long as it does not change, the
-- roster does not change.
\set roster_rows `cat part/roster_rows.sql`
\set probed `cat part/probed.sql`
WITH
  roster AS MATERIALIZED (
    :roster_rows
     WHERE p.lock_key BETWEEN :'from_key'::int8 AND :'upto_key'::int8
     ORDER BY p.lock_key
     LIMIT :'most'::int8
  ),
  probed AS MATERIALIZED (
    SELECT r.*, :'share'::bool AS share,
           CASE WHEN r.incarnation = :'own'::uuid OR NOT :'probe'::bool THEN false
                WHEN :'share'::bool THEN pg_try_advisory_xact_lock_shared(r.lock_key)
                ELSE pg_try_advisory_xact_lock(r.lock_key)
           END AS free
      FROM roster r
  ),
  :probed;
