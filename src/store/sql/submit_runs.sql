-- Runs on a caller's connection as well, under the caller's search_path. So each operator, function and type is named
-- with its schema, and each literal has a type.
--
-- Starts several runs that nobody owns. Pods with a handler and room claim them.
--
-- Arguments:
--   run_ids   uuid[]   the new runs, and for each:
--   kinds     text[]
--   keys      text[]     NULL for none; at most one running run of a kind has it
--   inputs    jsonb[]
--   movables  bool[]     whether it may move to a less busy pod
--   traces    text[]     the trace that it belongs to, as W3C Trace Context writes it
--   told      text     the channel that is notified when the transaction commits; NULL: none
--   word      text     the notice
--   patience  int4     how many milliseconds to wait for a transaction that is inserting one of the keys; NULL: as the
--                      session does
--
-- Returns one row: the runs that were inserted. Another was not if a run with its id, or a running one with its key,
-- exists.
WITH
  patience AS MATERIALIZED (
    SELECT f.former,
           CASE WHEN :'patience'::pg_catalog.int4 IS NOT NULL
                THEN pg_catalog.set_config('lock_timeout'::pg_catalog.text,
                                           :'patience'::pg_catalog.int4::pg_catalog.text, true)
           END AS set_to
      FROM (SELECT pg_catalog.current_setting('lock_timeout'::pg_catalog.text) AS former OFFSET 0::pg_catalog.int8) f
  ),
  wanted AS MATERIALIZED (
    SELECT w.run_id, w.kind, w.key, w.input, w.movable, w.trace, patience.set_to
      FROM patience
     CROSS JOIN ROWS FROM (pg_catalog.unnest(:'run_ids'::pg_catalog._uuid), pg_catalog.unnest(:'kinds'::pg_catalog._text),
                           pg_catalog.unnest(:'keys'::pg_catalog._text), pg_catalog.unnest(:'inputs'::pg_catalog._jsonb),
                           pg_catalog.unnest(:'movables'::pg_catalog._bool),
                           pg_catalog.unnest(:'traces'::pg_catalog._text))
                AS w (run_id, kind, key, input, movable, trace)
  ),
  run AS (
    INSERT INTO :"schema".studio_runs (run_id, kind, key, input, movable, traceparent)
    SELECT w.run_id, w.kind, w.key, w.input, w.movable, w.trace
      FROM wanted w
     -- One order of keys, so that two such statements cannot deadlock.
     ORDER BY w.kind COLLATE pg_catalog."C", w.key COLLATE pg_catalog."C", w.run_id
    ON CONFLICT DO NOTHING
    RETURNING run_id
  ),
  -- This is only a hint (L11). Without it, the next recovery pass of any pod finds the runs (L6).
  told AS MATERIALIZED (
    SELECT CASE WHEN :'told'::pg_catalog.text IS NOT NULL
                THEN pg_catalog.pg_notify(:'told'::pg_catalog.text, :'word'::pg_catalog.text)
           END AS told
     WHERE EXISTS (SELECT FROM run)
  )
SELECT pg_catalog.array_agg(run_id) AS run_ids,
       -- Without it, the server would leave `told` out.
       (SELECT pg_catalog.count(*) FROM told) AS told,
       -- After the inserts, so that the commit waits as long as the session does.
       (SELECT pg_catalog.set_config('lock_timeout'::pg_catalog.text, p.former, true)
          FROM patience p
         WHERE :'patience'::pg_catalog.int4 IS NOT NULL
           AND pg_catalog.count(run_id) OPERATOR(pg_catalog.>=) 0::pg_catalog.int8) AS patience
  FROM run;
