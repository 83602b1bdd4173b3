-- Records in the history that an incarnation began.
--
-- Arguments:
--   own     uuid   the new incarnation
--   pod     text   the pod's name
--   labels  jsonb  its labels
--   cgroup  jsonb  the cgroup of its process; NULL: unknown
INSERT INTO :"schema".studio_pod_sessions (incarnation, pod_id, labels, cgroup)
VALUES (:'own'::uuid, :'pod'::text, :'labels'::jsonb, :'cgroup'::jsonb);
