-- Runs on a caller's connection, under the caller's search_path. So each operator, function and type is named with its
-- schema, and each literal has a type.
--
-- Starts a run that one pod owns, in the caller's transaction. The pod begins the run's first attempt once the
-- transaction has committed. `start_run.sql` does the same outside of a caller's transaction.
--
-- Arguments:
--   own      uuid   the owner's incarnation
--   run_id   uuid   the new run
--   kind     text
--   key      text   NULL for none; at most one running run of a kind has it
--   input    jsonb
--   floor    int8   the highest fence that this process was ever given
--   told     text   the channel of the owner, which is notified when the transaction commits; NULL: none
--   movable  bool   whether it may move to a less busy pod
--   trace    text   the trace that it belongs to, as W3C Trace Context writes it
--
-- Returns one row. `fence` is NULL if no run was inserted: because `has_owner` is false (the incarnation is not in the
-- roster, or drains), because `is_cordoned` is true, because `in_reach` is false (the sequence of fences must be raised
-- first), or else because a run with this id, or a running one with this key, exists.
WITH
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
    -- L9: the new fence is above the floor, because `nextval` comes after `above`.
    SELECT :'run_id'::pg_catalog.uuid, :'kind'::pg_catalog.text, :'key'::pg_catalog.text,
           :'input'::pg_catalog.jsonb, me.pod_id, me.incarnation,
           pg_catalog.nextval(:'studio_fence'::pg_catalog.regclass), :'movable'::pg_catalog.bool,
           :'trace'::pg_catalog.text
      FROM me CROSS JOIN above
     WHERE (SELECT e.rises AND :'floor'::pg_catalog.int8 OPERATOR(pg_catalog.<=) e.most FROM reach e)
       AND NOT me.is_cordoned
    ON CONFLICT DO NOTHING
    RETURNING fence
  ),
  -- The server delivers the notification when the transaction commits. It is only a hint (L11).
  told AS MATERIALIZED (
    SELECT pg_catalog.pg_notify(:'told'::pg_catalog.text, 'runs'::pg_catalog.text) AS told
      FROM run
     WHERE :'told'::pg_catalog.text IS NOT NULL
  )
SELECT (SELECT fence FROM run) AS fence,
       EXISTS (SELECT FROM me) AS has_owner,
       EXISTS (SELECT FROM me WHERE me.is_cordoned) AS is_cordoned,
       -- Without it, the server would leave `told` out.
       (SELECT pg_catalog.count(*) FROM told) AS told,
       (SELECT e.rises AND :'floor'::pg_catalog.int8 OPERATOR(pg_catalog.<=) e.most FROM reach e) AS in_reach;
