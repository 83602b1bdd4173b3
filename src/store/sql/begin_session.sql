-- Records in the history that an incarnation began.
--
-- Arguments:
--   own  uuid  the new incarnation
--   pod  text  the pod's name
INSERT INTO :"schema".studio_pod_sessions (incarnation, pod_id)
VALUES (:'own'::uuid, :'pod'::text);
