-- Reads the keys of the two locks of a pod.
--
-- Arguments:
--   pod  text  the pod's name
--
-- Returns one row.
SELECT :"schema".studio_lock_key(:'pod'::text) AS lock,
       :"schema".studio_witness_key(:'pod'::text) AS witness;
