-- Ends a run for its owner, with its output, and closes the attempt.
--
-- Arguments:
--   run_id          uuid
--   own             uuid   the owner's incarnation
--   fence           int8
--   state           text   succeeded or failed
--   result          jsonb
--   error           text   NULL unless failed
--   stdout          text
--   stderr          text
--   exit_code       int4
--   output_escaped  bool
--   parse_error     text
--   chunks          int8   how many chunks the run's stream has, NULL: any number
--   number          int8   the number of this write among those of the attempt
--
-- Returns a row if the run was ended. No row: the owner is fenced, the run had ended, a later write of the attempt was
-- made, or the stream is shorter than `chunks`.
\set owned_by `cat part/owned_by.sql`
\set stream_length `cat part/stream_length.sql`
WITH
  done AS (
    UPDATE :"schema".studio_runs r
       SET state = :'state'::text,
           result = :'result'::jsonb,
           error = :'error'::text,
           finished_at = clock_timestamp(),
           stdout = :'stdout'::text,
           stderr = :'stderr'::text,
           exit_code = :'exit_code'::int4,
           output_escaped = :'output_escaped'::bool,
           parse_error = :'parse_error'::text
     WHERE :owned_by
       -- A write that was given up and arrives late changes nothing.
       AND r.written <= :'number'::int8
       -- If a failover lost chunks, the run's stream is not what its owner believes.
       AND COALESCE(:'chunks'::int8, 0) <= :stream_length
    RETURNING r.run_id, r.attempt
  ),
  closed AS (
    UPDATE :"schema".studio_run_attempts a
       SET ended_at = clock_timestamp(),
           reason = :'state'::text
      FROM done
     WHERE a.run_id = done.run_id AND a.attempt = done.attempt
  )
SELECT run_id FROM done;
