-- Releases several runs for their owners, as `give_back_run` does: nobody owns them then, and no crash is counted.
--
-- Arguments:
--   run_ids  uuid[]  the runs, and for each:
--   owners   uuid[]    the owner's incarnation
--   fences   int8[]
--   reasons  text[]    how the attempt ended: `yielded` or `moved`
--
-- Returns a row for each run. `is_written` is true if it was released. If not, `is_mine` says whether the owner had the
-- run all the same: another transaction has locked the row, or has just changed it.
\set mine `cat part/mine.sql`
\set owned_by_each `cat part/owned_by_each.sql`
\set still_mine `cat part/still_mine.sql`
WITH
  wanted AS MATERIALIZED (
    SELECT w.run_id, w.owner, w.fence, w.reason, w.nth
      FROM ROWS FROM (unnest(:'run_ids'::uuid[]), unnest(:'owners'::uuid[]), unnest(:'fences'::int8[]),
                      unnest(:'reasons'::text[]))
           WITH ORDINALITY AS w (run_id, owner, fence, reason, nth)
  ),
  :mine,
  given AS (
    UPDATE :"schema".studio_runs r
       SET owner_pod = NULL,
           owner_incarnation = NULL
      FROM mine m
      JOIN wanted w ON w.nth = m.nth
     WHERE :owned_by_each
    RETURNING r.run_id, r.attempt, w.reason
  ),
  closed AS (
    UPDATE :"schema".studio_run_attempts a
       SET ended_at = clock_timestamp(),
           reason = given.reason
      FROM given
     WHERE a.run_id = given.run_id AND a.attempt = given.attempt
  )
-- The runs are orphans now, and the next recovery pass of any pod finds them (L6).
SELECT w.nth,
       g.run_id IS NOT NULL AS is_written,
       CASE WHEN g.run_id IS NULL
            THEN :still_mine
            ELSE true END AS is_mine
  FROM wanted w
  LEFT JOIN given g ON g.run_id = w.run_id
 ORDER BY w.nth;
