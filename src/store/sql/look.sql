-- Looks at a portion of the roster: reads its rows, and probes their locks if so asked. The locks that it gets stay
-- with the transaction.
--
-- Probing stands in a part of its own, after LIMIT. So it probes only the rows of the portion, and each of them once.
--
-- Arguments:
--   own       uuid  the incarnation of this pod, which is not probed
--   from_key  int8  the least liveness key of the portion
--   upto_key  int8  the greatest
--   most      int8  how many rows at most: each probe takes room in the lock table of the server (L10)
--   probe     bool  whether to probe; otherwise every lock is said to be held, and the caller takes it as unknown
--
-- Returns a row for each pod. `version` is the position of the log's last event: an unchanged one means an unchanged
-- roster.
\set roster_rows `cat part/roster_rows.sql`
\set looked `cat part/looked.sql`
WITH
  roster AS MATERIALIZED (
    :roster_rows
     WHERE p.lock_key BETWEEN :'from_key'::int8 AND :'upto_key'::int8
     ORDER BY p.lock_key
     LIMIT :'most'::int8
  ),
  probed AS MATERIALIZED (
    SELECT r.*,
           CASE WHEN r.incarnation = :'own'::uuid OR NOT :'probe'::bool THEN false
                ELSE pg_try_advisory_xact_lock(r.lock_key)
           END AS free
      FROM roster r
  ),
  :looked;
