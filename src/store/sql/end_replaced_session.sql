-- Records how an incarnation ended that a new one of the same name replaces.
--
-- Arguments:
--   replaced  uuid  the former incarnation
--   reason    text  why it ended
UPDATE :"schema".studio_pod_sessions s
   SET ended_at = clock_timestamp(),
       reason = :'reason'::text
 WHERE s.incarnation = :'replaced'::uuid
   AND s.ended_at IS NULL;
