-- Finds where the first roll-up of samples begins: at the oldest partition, and at least 28 days back, for samples in a default
-- partition.
--
-- Returns one row.
SELECT date_trunc('hour', LEAST(now() - '28 days'::interval, min(b.bound)), 'UTC') AS hour
  FROM (SELECT (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(.([0-9][^)]*).\)'))[1]::timestamptz AS bound
          FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = :'studio_pod_heartbeats'::regclass) b
 -- Rows of earlier hours would be deleted at once.
 WHERE b.bound > now() - '400 days'::interval;
