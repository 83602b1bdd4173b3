-- Starts a run that one pod owns and runs at once, and begins its first attempt. Repeating it with the same run_id
-- changes nothing.
--
-- Arguments:
--   own      uuid   the owner's incarnation
--   run_id   uuid   the new run
--   kind     text
--   key      text   NULL for none; at most one running run of a kind has it
--   input    jsonb
--   floor    int8   the highest fence that this process was ever given
--   movable  bool   whether it may move to a less busy pod
--   trace    text   the trace that it belongs to, as W3C Trace Context writes it
--
-- Returns one row. `fence` is NULL if no run was inserted: because `has_owner` is false (the incarnation is not in the
-- roster, or drains), because `is_cordoned` is true, because `in_reach` is false (the sequence of fences must be raised
-- first), or else because a run with this id, or a running one with this key, exists.
\set reach `cat part/reach.sql`
\set above `cat part/above.sql`
WITH
  -- L6: if the owner were not in the roster, the run would be an orphan at once. A pod that drains takes no new run.
  me AS MATERIALIZED (
    SELECT p.pod_id, p.incarnation,
           p.cordoned_by IS NOT NULL AS is_cordoned
      FROM :"schema".studio_pods p
     WHERE p.incarnation = :'own'::uuid
       AND p.state = 'active'
  ),
  :reach,
  target AS (
    SELECT :'floor'::int8 AS floor
  ),
  :above,
  run AS (
    INSERT INTO :"schema".studio_runs (run_id, kind, key, input, owner_pod, owner_incarnation, fence, attempt, movable,
                                        traceparent)
    -- L9: the new fence is above the floor, because `nextval` comes after `above`.
    SELECT :'run_id'::uuid, :'kind'::text, :'key'::text, :'input'::jsonb, me.pod_id, me.incarnation,
           nextval(:'studio_fence'::regclass), 1, :'movable'::bool, :'trace'::text
      FROM me CROSS JOIN above
     WHERE (SELECT e.rises AND :'floor'::int8 <= e.most FROM reach e)
       AND NOT me.is_cordoned
    ON CONFLICT DO NOTHING
    RETURNING run_id, fence, owner_pod, owner_incarnation
  ),
  attempt AS (
    INSERT INTO :"schema".studio_run_attempts (run_id, attempt, pod_id, incarnation, fence)
    SELECT run_id, 1, owner_pod, owner_incarnation, fence
      FROM run
  )
SELECT (SELECT fence FROM run) AS fence,
       EXISTS (SELECT FROM me) AS has_owner,
       EXISTS (SELECT FROM me WHERE me.is_cordoned) AS is_cordoned,
       (SELECT e.rises AND :'floor'::int8 <= e.most FROM reach e) AS in_reach;
