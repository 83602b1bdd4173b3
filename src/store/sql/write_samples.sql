-- Stores samples of one incarnation. Those that an earlier call has stored are passed over.
--
-- The row in studio_sample_writers says how far the incarnation has written. A call whose answer was lost may still run:
-- it holds that row, so this one waits for it, at most for its own time-out, and then sees what was stored.
--
-- Arguments:
--   own      uuid   the incarnation
--   pod      text   the pod's name
--   last     int8   the number of the last of the samples
--   samples  jsonb  an array of objects with the members of `s` below, ordered by number. `age`: for how many seconds
--                   the pod has kept the sample, by its own monotonic clock
--
-- Returns one row: how many were stored. Fails with 23514 if the day of a sample has no partition.
WITH
  marked AS (
    INSERT INTO :"schema".studio_sample_writers AS w (incarnation, number, before, wrote_at)
    VALUES (:'own'::uuid, :'last'::int8, 0, clock_timestamp())
        ON CONFLICT (incarnation) DO UPDATE
           SET before = w.number,
               number = GREATEST(w.number, EXCLUDED.number),
               wrote_at = clock_timestamp()
    RETURNING w.before
  ),
  stored AS (
    INSERT INTO :"schema".studio_pod_heartbeats
           (pod_id, incarnation, number, sampled_at, status, health, cpu_usage, memory_pressure, memory_available,
            running_runs, runtime_lag_ms, gauges, details)
    -- L8: the pod's wall clock does not count. A wait for the row above does not either.
    SELECT :'pod'::text, :'own'::uuid, s.number, statement_timestamp() - make_interval(secs => s.age), s.status, s.health,
           s.cpu_usage, s.memory_pressure, s.memory_available, s.running_runs, s.runtime_lag_ms, s.gauges, s.details
      FROM marked
     CROSS JOIN jsonb_to_recordset(:'samples'::jsonb)
           AS s (number int8, age float8, status text, health text, cpu_usage float4, memory_pressure float4,
                 memory_available int8, running_runs int4, runtime_lag_ms float4, gauges jsonb, details jsonb)
     WHERE s.number > marked.before
    RETURNING number
  )
SELECT count(*) AS stored FROM stored;
