-- Finds the end of the newest hour before the current one that has rows.
--
-- Returns one row: NULL if there is none.
SELECT max(h.hour) + '1 hour'::interval AS hour
  FROM :"schema".studio_pod_heartbeats_hourly h
 WHERE h.hour < date_trunc('hour', now(), 'UTC');
