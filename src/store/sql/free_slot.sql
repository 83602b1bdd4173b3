-- Frees a slot of the fleet's admission that this session took.
--
-- Arguments:
--   schema  text  the schema of the fleet
--   slot    int4  the slot
--
-- Returns one row.
SELECT pg_advisory_unlock(hashtextextended('podlock/admission/' || :'schema'::text, :'slot'::int4)) AS was_taken;
