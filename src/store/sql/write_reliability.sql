-- Writes how reliable pods are. A row that another transaction has locked is passed over until the next roll-up.
--
-- Arguments:
--   token  uuid   whose roll-up it is
--   rows   jsonb  an array of objects, one for each pod: the columns by their names, but last_disconnect_us in microseconds
--                 since 1970, and is_over if no session of the pod is open
--
-- Returns one row: whether the roll-up is still the caller's (if not, nothing was written), and how many rows were added or
-- changed.
WITH mine AS MATERIALIZED (
    UPDATE :"schema".studio_roll_ups r SET claimed_at = now()
     WHERE r.what = (SELECT m.what FROM :"schema".studio_roll_ups m
                      WHERE m.what = 'reliability' AND m.token = :'token'::uuid FOR UPDATE SKIP LOCKED)
    RETURNING r.what
), made AS MATERIALIZED (
    SELECT n.*, 'epoch'::timestamptz + n.last_disconnect_us * '1 microsecond'::interval AS last_disconnect_at
      FROM jsonb_to_recordset(:'rows'::jsonb) AS n (pod_id text, is_over bool, window_days int4, uptime_pct float8,
           sessions_count int8, mtbf_seconds float8, p10_session_seconds float8, median_session_seconds float8,
           p90_session_seconds float8, hourly_availability jsonb, disconnect_reasons jsonb, p_stays_4h float8,
           p_stays_8h float8, last_disconnect_us int8, last_session_seconds float8, score float8)
     WHERE EXISTS (SELECT FROM mine)
), held AS MATERIALIZED (
    SELECT r.pod_id FROM :"schema".studio_pod_reliability r
     WHERE r.pod_id = ANY (ARRAY(SELECT m.pod_id FROM made m))
       FOR UPDATE SKIP LOCKED
), known AS MATERIALIZED (
    SELECT r.pod_id FROM :"schema".studio_pod_reliability r WHERE r.pod_id = ANY (ARRAY(SELECT m.pod_id FROM made m))
), changed AS (
    UPDATE :"schema".studio_pod_reliability r
       SET updated_at = now(), window_days = m.window_days, uptime_pct = m.uptime_pct,
           sessions_count = m.sessions_count, mtbf_seconds = m.mtbf_seconds,
           p10_session_seconds = m.p10_session_seconds, median_session_seconds = m.median_session_seconds,
           p90_session_seconds = m.p90_session_seconds, hourly_availability = m.hourly_availability,
           disconnect_reasons = m.disconnect_reasons, p_stays_4h = m.p_stays_4h, p_stays_8h = m.p_stays_8h,
           last_disconnect_at = m.last_disconnect_at, last_session_seconds = m.last_session_seconds, score = m.score
      FROM made m
     WHERE r.pod_id = m.pod_id
       -- Arrays and hashes, and no further joins: a plan may be older than the rows of a first roll-up, and expect none.
       AND r.pod_id = ANY (ARRAY(SELECT h.pod_id FROM held h))
       -- A fleet of random names has many pods that are over, and their numbers creep. Each write is two index entries and
       -- two kilobytes of log.
       AND (NOT m.is_over OR r.sessions_count <> m.sessions_count OR r.window_days <> m.window_days
            OR r.last_disconnect_at IS DISTINCT FROM m.last_disconnect_at
            OR r.disconnect_reasons <> m.disconnect_reasons
            OR abs(r.score - m.score) >= 0.001 OR abs(r.uptime_pct - m.uptime_pct) >= 0.1
            OR r.updated_at < now() - '1 day'::interval OR r.updated_at > now())
    RETURNING 1
), added AS (
    INSERT INTO :"schema".studio_pod_reliability AS r (pod_id, updated_at, window_days, uptime_pct, sessions_count,
           mtbf_seconds, p10_session_seconds, median_session_seconds, p90_session_seconds, hourly_availability,
           disconnect_reasons, p_stays_4h, p_stays_8h, last_disconnect_at, last_session_seconds, score)
    SELECT m.pod_id, now(), m.window_days, m.uptime_pct, m.sessions_count, m.mtbf_seconds, m.p10_session_seconds,
           m.median_session_seconds, m.p90_session_seconds, m.hourly_availability, m.disconnect_reasons, m.p_stays_4h,
           m.p_stays_8h, m.last_disconnect_at, m.last_session_seconds, m.score FROM made m
     WHERE m.pod_id NOT IN (SELECT k.pod_id FROM known k)
        ON CONFLICT (pod_id) DO NOTHING
    RETURNING 1
)
SELECT EXISTS (SELECT FROM mine) AS is_mine,
       (SELECT count(*) FROM changed) + (SELECT count(*) FROM added) AS rows;
