-- Reads the row that a pod's name has now, if any, and locks it until the transaction ends.
--
-- Arguments:
--   pod  text  the pod's name
--
-- Returns at most one row.
SELECT p.incarnation, p.evicted, p.cordoned_by,
       p.state = 'draining' AS draining
  FROM :"schema".studio_pods p
 WHERE p.pod_id = :'pod'::text
   FOR UPDATE;
