-- Cancels a run, whoever owns it. Notifies the owner, so that it reads the row, and the readers of the stream.
--
-- Arguments:
--   run_id  uuid
--   told    text  the notice for the readers (`protocol::notices::Told`)
--
-- Returns a row if the run was cancelled. No row: it had ended, or there is no such run.
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
  )
-- These are only hints (L11). Without them, the owner's next write is refused (L5), and readers query again by
-- themselves.
SELECT CASE WHEN p.incarnation IS NOT NULL
            -- A pod of an older version has no channel of its own.
            THEN pg_notify(COALESCE(CASE WHEN p.channel_of = p.incarnation THEN p.channel END,
                                    :"schema".studio_channel()), 'runs')
       END AS told_owner,
       pg_notify(:"schema".studio_stream_channel(), :'told'::text) AS told_readers
  FROM done
  LEFT JOIN :"schema".studio_pods p ON p.incarnation = done.owner_incarnation;
