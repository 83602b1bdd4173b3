-- Ends several runs for their owners, with their outputs, and closes the attempts, as `finish_run` does.
--
-- Arguments:
--   run_ids       uuid[]   the runs, and for each:
--   owners        uuid[]     the owner's incarnation
--   fences        int8[]
--   states        text[]     succeeded or failed
--   results       jsonb[]
--   errors        text[]     NULL unless failed
--   stdouts       text[]
--   stderrs       text[]
--   exit_codes    int4[]
--   escaped       bool[]
--   parse_errors  text[]
--   chunks        int8[]     how many chunks the run's stream has, NULL: any number
--
-- Returns a row for each run. `is_written` is true if it was ended. If not, `is_mine` says whether the owner had the run
-- all the same: another transaction has locked the row, or has just changed it.
\set mine `cat part/mine.sql`
\set owned_by_each `cat part/owned_by_each.sql`
\set still_mine `cat part/still_mine.sql`
\set stream_length `cat part/stream_length.sql`
WITH
  wanted AS MATERIALIZED (
    SELECT w.run_id, w.owner, w.fence, w.state, w.result, w.error, w.stdout, w.stderr, w.exit_code, w.escaped,
           w.parse_error, w.chunks, w.nth
      FROM ROWS FROM (unnest(:'run_ids'::uuid[]), unnest(:'owners'::uuid[]), unnest(:'fences'::int8[]),
                      unnest(:'states'::text[]), unnest(:'results'::jsonb[]), unnest(:'errors'::text[]),
                      unnest(:'stdouts'::text[]), unnest(:'stderrs'::text[]), unnest(:'exit_codes'::int4[]),
                      unnest(:'escaped'::bool[]), unnest(:'parse_errors'::text[]), unnest(:'chunks'::int8[]))
           WITH ORDINALITY AS w (run_id, owner, fence, state, result, error, stdout, stderr, exit_code, escaped,
                                 parse_error, chunks, nth)
  ),
  :mine,
  done AS (
    UPDATE :"schema".studio_runs r
       SET state = w.state,
           result = w.result,
           error = w.error,
           finished_at = clock_timestamp(),
           stdout = w.stdout,
           stderr = w.stderr,
           exit_code = w.exit_code,
           output_escaped = w.escaped,
           parse_error = w.parse_error
      FROM mine m
      JOIN wanted w ON w.nth = m.nth
     WHERE :owned_by_each
       -- If a failover lost chunks, the run's stream is not what its owner believes.
       AND (w.chunks IS NULL
            OR w.chunks <= :stream_length)
    RETURNING r.run_id, r.attempt, w.state
  ),
  closed AS (
    UPDATE :"schema".studio_run_attempts a
       SET ended_at = clock_timestamp(),
           reason = done.state
      FROM done
     WHERE a.run_id = done.run_id AND a.attempt = done.attempt
  )
SELECT w.nth,
       d.run_id IS NOT NULL AS is_written,
       CASE WHEN d.run_id IS NULL
            THEN :still_mine
            ELSE true END AS is_mine
  FROM wanted w
  LEFT JOIN done d ON d.run_id = w.run_id
 ORDER BY w.nth;
