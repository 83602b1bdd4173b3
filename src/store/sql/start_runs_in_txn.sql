-- Runs on a caller's connection, under the caller's search_path. So each operator, function and type is named with its
-- schema, and each literal has a type.
--
-- Starts several runs that one pod owns, in the caller's transaction. The pod begins their first attempts once the
-- transaction has committed. `start_runs.sql` does the same outside of a caller's transaction.
--
-- Arguments:
--   own       uuid    the owner's incarnation
--   run_ids   uuid[]  the new runs, and for each:
--   kinds     text[]
--   keys      text[]    NULL for none; at most one running run of a kind has it
--   inputs    jsonb[]
--   movables  bool[]    whether it may move to a less busy pod
--   traces    text[]    the trace that it belongs to, as W3C Trace Context writes it
--   floor     int8    the highest fence that this process was ever given
--   told      text    the channel of the owner, which is notified when the transaction commits; NULL: none
--
-- Returns one row: the runs that were inserted, and why another was not. `has_owner` is false if the incarnation is not
-- in the roster, or drains. `is_cordoned` is true if its pod is cordoned. `in_reach` is false if the sequence of fences
-- must be raised first. Otherwise a run with its id, or a running one with its key, exists.
WITH
  wanted AS MATERIALIZED (
    SELECT w.run_id, w.kind, w.key, w.input, w.movable, w.trace
      FROM ROWS FROM (pg_catalog.unnest(:'run_ids'::pg_catalog._uuid), pg_catalog.unnest(:'kinds'::pg_catalog._text),
                      pg_catalog.unnest(:'keys'::pg_catalog._text), pg_catalog.unnest(:'inputs'::pg_catalog._jsonb),
                      pg_catalog.unnest(:'movables'::pg_catalog._bool), pg_catalog.unnest(:'traces'::pg_catalog._text))
           AS w (run_id, kind, key, input, movable, trace)
  ),
  -- L6: if the owner were not in the roster, the run would be an orphan at once. A pod that drains takes no new run.
  me AS MATERIALIZED (
    SELECT p.pod_id, p.incarnation,
           p.cordoned_by IS NOT NULL AS is_cordoned
      FROM :"schema".studio_pods p
     WHERE p.incarnation OPERATOR(pg_catalog.=) :'own'::pg_catalog.uuid
       AND p.state OPERATOR(pg_catalog.=) 'active'::pg_catalog.text
  ),
  -- As in part/reach.sql: how far the sequence of fences has come, and how far this statement may raise it.
  reach AS MATERIALIZED (
    SELECT COALESCE(pg_catalog.pg_sequence_last_value(q.seqrelid::pg_catalog.regclass), 0::pg_catalog.int8) AS last,
           COALESCE(pg_catalog.pg_sequence_last_value(q.seqrelid::pg_catalog.regclass), 0::pg_catalog.int8)
             OPERATOR(pg_catalog.+) 100000::pg_catalog.int8 AS most,
           -- With a CACHE, sessions use numbers that they reserved earlier, and fences could fall (L9).
           q.seqcache OPERATOR(pg_catalog.=) 1::pg_catalog.int8 AS rises
      FROM pg_catalog.pg_sequence q
     WHERE q.seqrelid OPERATOR(pg_catalog.=) :'studio_fence'::pg_catalog.regclass::pg_catalog.oid
  ),
  -- As in part/above.sql: takes the numbers up to the floor from the sequence.
  above AS MATERIALIZED (
    SELECT pg_catalog.count(pg_catalog.nextval(:'studio_fence'::pg_catalog.regclass)) AS passed
      FROM (SELECT pg_catalog.generate_series(
                     1::pg_catalog.int8,
                     LEAST(:'floor'::pg_catalog.int8 OPERATOR(pg_catalog.-) e.last, 100000::pg_catalog.int8))
              FROM reach e) AS missing
  ),
  run AS (
    INSERT INTO :"schema".studio_runs (run_id, kind, key, input, owner_pod, owner_incarnation, fence, movable,
                                        traceparent)
    -- L9: the new fences are above the floor, because `nextval` comes after `above`.
    SELECT w.run_id, w.kind, w.key, w.input, me.pod_id, me.incarnation,
           pg_catalog.nextval(:'studio_fence'::pg_catalog.regclass), w.movable, w.trace
      -- One order of keys, so that two such statements cannot deadlock.
      FROM (SELECT *
              FROM wanted
             ORDER BY wanted.kind COLLATE pg_catalog."C", wanted.key COLLATE pg_catalog."C", wanted.run_id) w
     CROSS JOIN me CROSS JOIN above
     WHERE (SELECT e.rises AND :'floor'::pg_catalog.int8 OPERATOR(pg_catalog.<=) e.most FROM reach e)
       AND NOT me.is_cordoned
    ON CONFLICT DO NOTHING
    RETURNING run_id
  ),
  -- The server delivers the notification when the transaction commits. It is only a hint (L11).
  told AS MATERIALIZED (
    SELECT pg_catalog.pg_notify(:'told'::pg_catalog.text, 'runs'::pg_catalog.text) AS told
     WHERE :'told'::pg_catalog.text IS NOT NULL
       AND EXISTS (SELECT FROM run)
  )
SELECT (SELECT pg_catalog.array_agg(run_id) FROM run) AS run_ids,
       EXISTS (SELECT FROM me) AS has_owner,
       EXISTS (SELECT FROM me WHERE me.is_cordoned) AS is_cordoned,
       -- Without it, the server would leave `told` out.
       (SELECT pg_catalog.count(*) FROM told) AS told,
       (SELECT e.rises AND :'floor'::pg_catalog.int8 OPERATOR(pg_catalog.<=) e.most FROM reach e) AS in_reach;
