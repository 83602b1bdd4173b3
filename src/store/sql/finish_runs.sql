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
--   numbers       int8[]     the number of this write among those of the attempt
--
-- Returns a row for each write that was made, with its number `nth` from 1 on, and for each whose owner no longer has
-- the run; `is_made` tells them apart. No row: another transaction has locked the run, a later write of the attempt was
-- made, or the stream is shorter than `chunks`.
\set owned_by_each `cat part/owned_by_each.sql`
\set stream_length `cat part/stream_length.sql`
WITH
  writes AS MATERIALIZED (
    SELECT w.run_id, w.owner, w.fence, w.state, w.result, w.error, w.stdout, w.stderr, w.exit_code, w.escaped,
           w.parse_error, w.chunks, w.number, w.nth
      FROM ROWS FROM (unnest(:'run_ids'::uuid[]), unnest(:'owners'::uuid[]), unnest(:'fences'::int8[]),
                      unnest(:'states'::text[]), unnest(:'results'::jsonb[]), unnest(:'errors'::text[]),
                      unnest(:'stdouts'::text[]), unnest(:'stderrs'::text[]), unnest(:'exit_codes'::int4[]),
                      unnest(:'escaped'::bool[]), unnest(:'parse_errors'::text[]), unnest(:'chunks'::int8[]),
                      unnest(:'numbers'::int8[]))
           WITH ORDINALITY AS w (run_id, owner, fence, state, result, error, stdout, stderr, exit_code, escaped,
                                 parse_error, chunks, number, nth)
     -- As many as there are. The server takes a limit for few rows, and looks each run up by its key.
     LIMIT cardinality(:'run_ids'::uuid[])
  ),
  -- Locks the rows in one order, so that two such statements cannot deadlock. Skips rows that another transaction has
  -- locked (L12): the neighbours do not wait for them.
  looked AS MATERIALIZED (
    SELECT w.*, held.is_held
      FROM (SELECT * FROM writes ORDER BY writes.run_id) w
      LEFT JOIN LATERAL (
        SELECT true AS is_held
          FROM :"schema".studio_runs r
         WHERE :owned_by_each
           -- A write that was given up and arrives late changes nothing.
           AND r.written <= w.number
           -- If a failover lost chunks, the run's stream is not what its owner believes.
           AND (w.chunks IS NULL
                OR w.chunks <= :stream_length)
           FOR NO KEY UPDATE OF r SKIP LOCKED
      ) held ON true
  ),
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
      FROM looked w
     WHERE w.is_held
       AND :owned_by_each
    RETURNING r.run_id, r.attempt, w.state, w.nth
  ),
  closed AS (
    UPDATE :"schema".studio_run_attempts a
       SET ended_at = clock_timestamp(),
           reason = done.state
      FROM done
     WHERE a.run_id = done.run_id AND a.attempt = done.attempt
  )
SELECT nth, true AS is_made
  FROM done
 UNION ALL
SELECT w.nth, false
  FROM looked w
 WHERE w.is_held IS NULL
   AND (SELECT count(*)
          FROM :"schema".studio_runs r
         WHERE :owned_by_each) = 0;
