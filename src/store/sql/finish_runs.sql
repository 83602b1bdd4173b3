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
\set looked `cat part/looked.sql`
\set lost `cat part/lost.sql`
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
  :looked,
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
:lost;
