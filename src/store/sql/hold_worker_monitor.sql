-- Makes this pod the one that looks after the liveness of workers, or lets it stay so, and counts a look.
--
-- Arguments:
--   own    uuid  the incarnation of the pod
--   stuck  int8  the number of looks at which the present monitor stands still, as this pod saw it; NULL: it does not
--
-- Returns the number of looks. No row: another pod looks after them.
INSERT INTO :"schema".studio_worker_monitor AS m (incarnation, looks)
SELECT p.incarnation, 1 FROM :"schema".studio_pods p WHERE p.incarnation = :'own'::uuid
    ON CONFLICT (single) DO UPDATE
   SET incarnation = EXCLUDED.incarnation, looks = m.looks + 1
 WHERE m.incarnation = EXCLUDED.incarnation
    OR m.incarnation IS NULL
    OR NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = m.incarnation)
    OR m.looks = :'stuck'::int8
RETURNING m.looks;
