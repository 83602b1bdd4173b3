-- Makes the hourly rows of some whole hours from their samples, and records how far the roll-up has got.
--
-- Arguments:
--   token      uuid         whose roll-up it is
--   from_hour  timestamptz  the first hour
--   to_hour    timestamptz  the end of the last hour
--   upto       timestamptz  all hours before this one have their rows afterwards
--
-- Returns one row: whether the roll-up is still the caller's (if not, nothing was written), and how many rows were added or
-- changed. A row that another transaction has locked is passed over.
WITH mine AS MATERIALIZED (
    UPDATE :"schema".studio_roll_ups r SET upto = :'upto'::timestamptz, claimed_at = now()
     WHERE r.what = (SELECT m.what FROM :"schema".studio_roll_ups m
                      WHERE m.what = 'hourly' AND m.token = :'token'::uuid FOR UPDATE SKIP LOCKED)
    RETURNING r.what
), made AS MATERIALIZED (
    SELECT s.pod_id, date_bin('1 hour'::interval, s.sampled_at, 'epoch'::timestamptz) AS hour, count(*) AS heartbeat_count,
           avg(s.memory_pressure) AS avg_memory_pressure, avg(s.cpu_usage) AS avg_cpu_usage,
           -- By severity. A name that a newer version added does not count.
           (ARRAY['nominal', 'fair', 'serious', 'critical'])[
               COALESCE(max(array_position(ARRAY['nominal', 'fair', 'serious', 'critical'], s.health)), 1)] AS max_health,
           avg(s.memory_available)::float8 AS avg_memory_available
      FROM :"schema".studio_pod_heartbeats s
     WHERE s.sampled_at >= :'from_hour'::timestamptz AND s.sampled_at < :'to_hour'::timestamptz
       AND EXISTS (SELECT FROM mine)
     GROUP BY 1, 2
), held AS MATERIALIZED (
    SELECT h.pod_id, h.hour FROM :"schema".studio_pod_heartbeats_hourly h
     WHERE h.hour >= :'from_hour'::timestamptz AND h.hour < :'to_hour'::timestamptz
       AND EXISTS (SELECT FROM mine)
       FOR UPDATE SKIP LOCKED
), known AS MATERIALIZED (
    SELECT h.pod_id, h.hour FROM :"schema".studio_pod_heartbeats_hourly h
     WHERE h.hour >= :'from_hour'::timestamptz AND h.hour < :'to_hour'::timestamptz
), changed AS (
    UPDATE :"schema".studio_pod_heartbeats_hourly h
       SET heartbeat_count = m.heartbeat_count, avg_memory_pressure = m.avg_memory_pressure,
           avg_cpu_usage = m.avg_cpu_usage, max_health = m.max_health, avg_memory_available = m.avg_memory_available
      FROM made m JOIN held USING (pod_id, hour)
     WHERE h.pod_id = m.pod_id AND h.hour = m.hour
       AND h.hour >= :'from_hour'::timestamptz AND h.hour < :'to_hour'::timestamptz
       -- What did not change costs no write.
       AND (h.heartbeat_count, h.avg_memory_pressure, h.avg_cpu_usage, h.max_health, h.avg_memory_available)
           IS DISTINCT FROM
           (m.heartbeat_count, m.avg_memory_pressure, m.avg_cpu_usage, m.max_health, m.avg_memory_available)
    RETURNING 1
), added AS (
    INSERT INTO :"schema".studio_pod_heartbeats_hourly AS h (pod_id, hour, heartbeat_count, avg_memory_pressure,
           avg_cpu_usage, max_health, avg_memory_available)
    SELECT m.pod_id, m.hour, m.heartbeat_count, m.avg_memory_pressure, m.avg_cpu_usage, m.max_health,
           m.avg_memory_available FROM made m
     -- A hash, and no join: a plan may be older than the rows of a first roll-up, and expect none.
     WHERE (m.pod_id, m.hour) NOT IN (SELECT k.pod_id, k.hour FROM known k)
        ON CONFLICT (pod_id, hour) DO NOTHING
    RETURNING 1
)
SELECT EXISTS (SELECT FROM mine) AS is_mine,
       (SELECT count(*) FROM changed) + (SELECT count(*) FROM added) AS rows;
