-- Checks whether anything is known of a pod, besides samples: the statement would lock each of their days.
--
-- Arguments:
--   pod  text  the pod's name
--
-- Returns one row with a bool.
SELECT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.pod_id = :'pod'::text)
       OR EXISTS (SELECT FROM :"schema".studio_pod_sessions s WHERE s.pod_id = :'pod'::text)
       OR EXISTS (SELECT FROM :"schema".studio_pod_reliability r WHERE r.pod_id = :'pod'::text) AS is_known;
