-- Records the backend of the control session in the pod's row.
--
-- Arguments:
--   own      uuid         the incarnation of the pod
--   pid      int4         the backend
--   started  timestamptz  when that backend began
UPDATE :"schema".studio_pods p
   SET control_pid = :'pid'::int4,
       control_started = :'started'::timestamptz
 WHERE p.incarnation = :'own'::uuid;
