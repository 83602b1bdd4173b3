-- Gives a run back for its owner: from now on nobody owns it, which counts as no crash. Tells every pod.
--
-- Arguments:
--   run_id  uuid
--   own     uuid  the owner's incarnation
--   fence   int8
--
-- Returns a row if the run was given back. None: the owner is fenced.
\set owned_by `cat part/owned_by.sql`
WITH
  given AS (
    UPDATE :"schema".studio_runs r
       SET owner_pod = NULL,
           owner_incarnation = NULL
     WHERE :owned_by
    RETURNING r.run_id, r.attempt
  ),
  closed AS (
    UPDATE :"schema".studio_run_attempts a
       SET ended_at = clock_timestamp(),
           reason = 'yielded'
      FROM given
     WHERE a.run_id = given.run_id AND a.attempt = given.attempt
  )
-- Only a hint (L11): the run is an orphan now, which the next recovery pass of any pod finds (L6).
SELECT pg_notify(:"schema".studio_channel(), 'recover') AS told
  FROM given;
