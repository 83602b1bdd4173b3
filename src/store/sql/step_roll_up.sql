-- Says that a roll-up goes on, how far it has got, and in the end that it is done.
--
-- Arguments:
--   what    text  `hourly` or `reliability`
--   token   uuid  whose it is
--   slice   int4  how many slices are done; NULL: none
--   slices  int4  how many there are; NULL: not known
--   done    bool  whether it is complete
--
-- Returns one row. No row: it is another's by now, and the caller stops.
UPDATE :"schema".studio_roll_ups r
   SET claimed_at = now(),
       slice = CASE WHEN :'done'::bool THEN NULL ELSE :'slice'::int4 END,
       slices = CASE WHEN :'done'::bool THEN NULL ELSE :'slices'::int4 END,
       token = CASE WHEN :'done'::bool THEN NULL ELSE r.token END,
       done_at = CASE WHEN :'done'::bool THEN now() ELSE r.done_at END
 WHERE r.what = (SELECT m.what FROM :"schema".studio_roll_ups m
                  WHERE m.what = :'what'::text AND m.token = :'token'::uuid FOR UPDATE SKIP LOCKED)
RETURNING r.what;
