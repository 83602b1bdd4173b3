-- Writes the next event index into the pod's row: a beat.
--
-- Arguments:
--   own  uuid  the incarnation of the pod
UPDATE :"schema".studio_pods p
   SET event_index = nextval(:'studio_beat'::regclass),
       beat_at = now(),
       standing = NULL
 WHERE p.incarnation = :'own'::uuid;
