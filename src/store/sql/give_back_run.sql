-- Releases a run for its owner: nobody owns it then, and no crash is counted.
--
-- Arguments:
--   run_id  uuid
--   own     uuid  the owner's incarnation
--   fence   int8
--   reason  text  how the attempt ended: `yielded` or `moved`
--   number  int8  the number of this write among those of the attempt
--
-- Returns a row if the run was released. No row: the owner is fenced, or a later write of the attempt was made.
\set owned_by `cat part/owned_by.sql`
WITH
  given AS (
    UPDATE :"schema".studio_runs r
       SET owner_pod = NULL,
           owner_incarnation = NULL
     WHERE :owned_by
       -- A write that was given up and arrives late changes nothing.
       AND r.written <= :'number'::int8
    RETURNING r.run_id, r.attempt
  ),
  closed AS (
    UPDATE :"schema".studio_run_attempts a
       SET ended_at = clock_timestamp(),
           reason = :'reason'::text
      FROM given
     WHERE a.run_id = given.run_id AND a.attempt = given.attempt
  )
-- The run is an orphan now, and the next recovery pass of any pod finds it (L6).
SELECT given.run_id FROM given;
