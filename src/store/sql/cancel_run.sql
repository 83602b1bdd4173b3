-- Cancels a run, whoever owns it. Tells the pods, of which the owner then reads the row, and the readers of the
-- stream.
--
-- Arguments:
--   run_id  uuid
--   told    text  what the readers are told (`protocol::notices::Told`)
--
-- Returns a row if the run was cancelled. None: it had ended, or there is no such run.
WITH
  done AS (
    UPDATE :"schema".studio_runs
       SET state = 'cancelled',
           finished_at = clock_timestamp()
     WHERE run_id = :'run_id'::uuid
       AND state = 'running'
    RETURNING run_id, attempt
  ),
  closed AS (
    UPDATE :"schema".studio_run_attempts a
       SET ended_at = clock_timestamp(),
           reason = 'cancelled'
      FROM done
     WHERE a.run_id = done.run_id AND a.attempt = done.attempt AND a.ended_at IS NULL
  )
-- Only hints (L11): without them, the owner's next write is refused (L5), and readers look again by themselves.
SELECT pg_notify(:"schema".studio_channel(), 'runs') AS told_pods,
       pg_notify(:"schema".studio_stream_channel(), :'told'::text) AS told_readers
  FROM done;
