-- Takes one of the slots of the fleet's admission, if one is free: a session lock. The log and the pods' own locks have
-- other keys.
--
-- Arguments:
--   schema  text  the schema of the fleet
--   slots   int4  how many slots there are
--   first   int4  the slot that is tried first
--
-- Returns the slot, or no row if all are taken.
SELECT (n + :'first'::int4) % :'slots'::int4 AS slot
  FROM generate_series(0, :'slots'::int4 - 1) AS n
 WHERE pg_try_advisory_lock(hashtextextended('podlock/admission/' || :'schema'::text,
                                             (n + :'first'::int4) % :'slots'::int4))
 LIMIT 1;
