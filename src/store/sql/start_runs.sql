-- Starts several runs that one pod owns and runs at once, and begins their first attempts. Repeating it with the same
-- run_ids changes nothing.
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
--   patience  int4    how many milliseconds to wait for a transaction that is inserting one of the keys; NULL: as the
--                     session does
--
-- Returns one row: the runs that were inserted, their fences, and why another was not. `has_owner` is false if the
-- incarnation is not in the roster, or drains. Otherwise `start_run` finds the reason.
\set reach `cat part/reach.sql`
\set above `cat part/above.sql`
WITH
  patience AS MATERIALIZED (
    SELECT f.former, set_config('lock_timeout', COALESCE(:'patience'::int4::text, f.former), true) AS is_set
      FROM (SELECT current_setting('lock_timeout') AS former OFFSET 0) f
  ),
  wanted AS MATERIALIZED (
    SELECT w.run_id, w.kind, w.key, w.input, w.movable, w.trace
      FROM patience
     CROSS JOIN ROWS FROM (unnest(:'run_ids'::uuid[]), unnest(:'kinds'::text[]), unnest(:'keys'::text[]),
                           unnest(:'inputs'::jsonb[]), unnest(:'movables'::bool[]), unnest(:'traces'::text[]))
                AS w (run_id, kind, key, input, movable, trace)
     WHERE patience.is_set IS NOT NULL
  ),
  -- L6: if the owner were not in the roster, the runs would be orphans at once. A pod that drains takes no new run.
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
    -- L9: the new fences are above the floor, because `nextval` comes after `above`.
    SELECT w.run_id, w.kind, w.key, w.input, me.pod_id, me.incarnation, nextval(:'studio_fence'::regclass), 1, w.movable,
           w.trace
      -- One order of keys, so that two such statements cannot deadlock.
      FROM (SELECT * FROM wanted ORDER BY wanted.kind COLLATE "C", wanted.key COLLATE "C", wanted.run_id) w
     CROSS JOIN me CROSS JOIN above
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
SELECT array_agg(run_id ORDER BY run_id) AS run_ids,
       array_agg(fence ORDER BY run_id) AS fences,
       EXISTS (SELECT FROM me) AS has_owner,
       -- After the inserts, so that the commit waits as long as the session does.
       (SELECT set_config('lock_timeout', p.former, true) FROM patience p WHERE count(run_id) >= 0) AS patience
  FROM run;
