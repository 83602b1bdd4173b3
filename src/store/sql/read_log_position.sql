-- Reads the position of the last event of the log.
--
-- Returns one row; 0 if the log is empty.
SELECT COALESCE(max(e.idx), 0) AS idx
  FROM :"schema".studio_pod_events e;
