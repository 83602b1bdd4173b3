-- Cancels a run, whoever owns it. Notifies the owner, so that it reads the row, and the readers of the stream.
--
-- Arguments:
--   run_id       uuid
--   own          uuid    NULL: the readers on all pods are notified
--   by           text    the sender's number in the notice
--   told_runs    uuid[]  the run
--   told_groups  text[]  its group in the notice (`protocol::notices::group`)
--   groups_most  int4    the most groups that the notice names
--
-- Returns a row if the run was cancelled. No row: it had ended, or there is no such run.
\set tell_readers `cat part/tell_readers.sql`
WITH
  done AS (
    UPDATE :"schema".studio_runs
       SET state = 'cancelled',
           finished_at = clock_timestamp()
     WHERE run_id = :'run_id'::uuid
       AND state = 'running'
    RETURNING run_id, attempt, owner_incarnation
  ),
  closed AS (
    UPDATE :"schema".studio_run_attempts a
       SET ended_at = clock_timestamp(),
           reason = 'cancelled'
      FROM done
     WHERE a.run_id = done.run_id AND a.attempt = done.attempt AND a.ended_at IS NULL
  ),
  told AS MATERIALIZED (
:tell_readers
  )
-- These are only hints (L11). Without them, the owner's next write is refused (L5), and readers query again by
-- themselves.
SELECT CASE WHEN p.incarnation IS NOT NULL
            -- A pod of an older version has no channel of its own.
            THEN pg_notify(COALESCE(CASE WHEN p.channel_of = p.incarnation THEN p.channel END,
                                    :"schema".studio_channel()), 'runs')
       END AS told_owner,
       (SELECT count(*) FROM told) AS told_readers
  FROM done
  LEFT JOIN :"schema".studio_pods p ON p.incarnation = done.owner_incarnation;
