-- Reads how reliable one pod is.
--
-- Arguments:
--   pod  text  the pod's name, or the value of the label that scores are made by
--
-- Returns one row, or none if no roll-up has seen it.
\set reliability_columns `cat part/reliability_columns.sql`
SELECT r.pod_id, :reliability_columns
  FROM :"schema".studio_pod_reliability r
 WHERE r.pod_id = :'pod'::text;
