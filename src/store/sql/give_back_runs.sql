-- Releases several runs for their owners, as `give_back_run` does: nobody owns them then, and no crash is counted.
--
-- Arguments:
--   run_ids  uuid[]  the runs, and for each:
--   owners   uuid[]    the owner's incarnation
--   fences   int8[]
--   reasons  text[]    how the attempt ended: `yielded` or `moved`
--   numbers  int8[]    the number of this write among those of the attempt
--
-- Returns a row for each write that was made, with its number `nth` from 1 on, and for each whose owner no longer has
-- the run; `is_made` tells them apart. No row: another transaction has locked the run, or a later write of the attempt
-- was made.
\set owned_by_each `cat part/owned_by_each.sql`
\set stream_length `cat part/stream_length.sql`
\set looked `cat part/looked.sql`
\set lost `cat part/lost.sql`
WITH
  writes AS MATERIALIZED (
    SELECT w.run_id, w.owner, w.fence, w.reason, w.number, NULL::int8 AS chunks, w.nth
      FROM ROWS FROM (unnest(:'run_ids'::uuid[]), unnest(:'owners'::uuid[]), unnest(:'fences'::int8[]),
                      unnest(:'reasons'::text[]), unnest(:'numbers'::int8[]))
           WITH ORDINALITY AS w (run_id, owner, fence, reason, number, nth)
     -- As many as there are. The server takes a limit for few rows, and looks each run up by its key.
     LIMIT cardinality(:'run_ids'::uuid[])
  ),
  :looked,
  given AS (
    UPDATE :"schema".studio_runs r
       SET owner_pod = NULL,
           owner_incarnation = NULL
      FROM looked w
     WHERE w.is_held
       AND :owned_by_each
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
SELECT nth, true AS is_made
  FROM given
 UNION ALL
:lost;
