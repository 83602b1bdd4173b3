-- Releases several runs for their owners, as `give_back_run` does: nobody owns them then, and no crash is counted.
--
-- Arguments:
--   run_ids  uuid[]  the runs, and for each:
--   owners   uuid[]    the owner's incarnation
--   fences   int8[]
--   reasons  text[]    how the attempt ended: `yielded` or `moved`
--
-- Returns the number `nth` of each write that was made, from 1 on, in any order. A write is not made if the owner no longer
-- has the run, if it came too late, or if another transaction has locked the row.
\set owned_by_each `cat part/owned_by_each.sql`
WITH
  writes AS MATERIALIZED (
    SELECT w.run_id, w.owner, w.fence, w.reason, w.nth
      FROM ROWS FROM (unnest(:'run_ids'::uuid[]), unnest(:'owners'::uuid[]), unnest(:'fences'::int8[]),
                      unnest(:'reasons'::text[]))
           WITH ORDINALITY AS w (run_id, owner, fence, reason, nth)
     -- As many as there are. The server takes a limit for few rows, and looks each run up by its key.
     LIMIT cardinality(:'run_ids'::uuid[])
  ),
  -- Locks the rows in one order, so that two such statements cannot deadlock. Skips rows that another transaction has
  -- locked (L12): the neighbours do not wait for them.
  mine AS MATERIALIZED (
    SELECT w.*
      FROM (SELECT * FROM writes ORDER BY writes.run_id) w
     CROSS JOIN LATERAL (
       SELECT
         FROM :"schema".studio_runs r
        WHERE :owned_by_each
          FOR NO KEY UPDATE OF r SKIP LOCKED
     ) held
  ),
  given AS (
    UPDATE :"schema".studio_runs r
       SET owner_pod = NULL,
           owner_incarnation = NULL
      FROM mine w
     WHERE :owned_by_each
    RETURNING r.run_id, r.attempt, w.reason, w.nth
  ),
  closed AS (
    UPDATE :"schema".studio_run_attempts a
       SET ended_at = clock_timestamp(),
           reason = given.reason
      FROM given
     WHERE a.run_id = given.run_id AND a.attempt = given.attempt
  )
-- The runs are orphans now, and the next recovery pass of any pod finds them (L6).
SELECT nth
  FROM given;
