-- Makes this pod the one that looks after the liveness of workers, or lets it stay so, and counts a look.
--
-- Arguments:
--   own    uuid  the incarnation of the pod
--   stuck  int8  the number of the present monitor's last round, if this pod saw that number stand still; or else NULL
--
-- Returns the number of the new round. No row: another pod is the monitor.
INSERT INTO :"schema".studio_worker_monitor AS m (incarnation, looks)
SELECT p.incarnation, 1 FROM :"schema".studio_pods p WHERE p.incarnation = :'own'::uuid
    ON CONFLICT (single) DO UPDATE
   SET incarnation = EXCLUDED.incarnation, looks = m.looks + 1
 WHERE m.incarnation = EXCLUDED.incarnation
    OR m.incarnation IS NULL
    OR NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = m.incarnation)
    OR m.looks = :'stuck'::int8
RETURNING m.looks;
