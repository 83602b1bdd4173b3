-- The tables say what the types of the library say, and the sequence of fences can be raised safely.
--
-- A row that was changed by hand may hold a number or a name that no pod can work with. Such a row is refused where it is
-- written from now on. Rows that are there already are not looked at here: this transaction holds a strong lock. Version 19
-- looks at them. Each table has a version of its own, so that no transaction holds one table and waits for another.

ALTER TABLE studio_runs
    ADD CONSTRAINT studio_runs_attempt_check
        CHECK (attempt OPERATOR(pg_catalog.>=) 0::pg_catalog.int4 AND attempt OPERATOR(pg_catalog.<) 2147483647::pg_catalog.int4) NOT VALID,
    ADD CONSTRAINT studio_runs_crashes_check
        CHECK (crashes OPERATOR(pg_catalog.>=) 0::pg_catalog.int4 AND crashes OPERATOR(pg_catalog.<) 2147483647::pg_catalog.int4) NOT VALID,
    ADD CONSTRAINT studio_runs_fence_check
        CHECK (fence OPERATOR(pg_catalog.>=) 0::pg_catalog.int8 AND fence OPERATOR(pg_catalog.<=) 9007199254740991::pg_catalog.int8) NOT VALID,
    ADD CONSTRAINT studio_runs_positions_check
        CHECK (written OPERATOR(pg_catalog.>=) 0::pg_catalog.int8 AND checkpoint_seq OPERATOR(pg_catalog.>=) 0::pg_catalog.int8
           AND stream_furthest OPERATOR(pg_catalog.>=) 0::pg_catalog.int8 AND stream_generation OPERATOR(pg_catalog.>=) 1::pg_catalog.int4
           AND stream_resets OPERATOR(pg_catalog.>=) 0::pg_catalog.int4) NOT VALID;

COMMENT ON COLUMN studio_runs.error IS 'Why a failed run failed; of a quarantined one, which owners died with it, and when, or why no pod could claim it.';

-- setval() alone is not safe beside nextval(): between the look at the sequence and the setval another may have gone past.
-- ALTER SEQUENCE takes a lock that every nextval() waits for, until the end of this transaction; and with RESTART it throws
-- away the numbers that sessions hold in store where CACHE was more than 1.
CREATE FUNCTION studio_raise_fence(floor pg_catalog.int8) RETURNS pg_catalog.int8
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path FROM CURRENT
    -- While this waits for an open transaction that took a fence, every other fence waits behind it.
    SET lock_timeout = '100ms'
    AS $$
DECLARE
    most CONSTANT pg_catalog.int8 := 1099511627776::pg_catalog.int8;
    last pg_catalog.int8;
BEGIN
    EXECUTE pg_catalog.format('ALTER SEQUENCE %I.%I CACHE 1'::pg_catalog.text, pg_catalog.current_schema(), 'studio_fence'::pg_catalog.text);
    last := COALESCE(pg_catalog.pg_sequence_last_value(pg_catalog.format('%I.%I'::pg_catalog.text, pg_catalog.current_schema(),
        'studio_fence'::pg_catalog.text)::pg_catalog.regclass), 0::pg_catalog.int8);
    IF ($1 OPERATOR(pg_catalog.-) last) OPERATOR(pg_catalog.>) most THEN
        RAISE EXCEPTION 'the sequence of fences stands at %, and is not raised to % at once', last, $1
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'A number that is so far ahead was made by hand. See which row of studio_runs has it.';
    END IF;
    last := GREATEST(last, $1);
    EXECUTE pg_catalog.format('ALTER SEQUENCE %I.%I RESTART WITH %s'::pg_catalog.text, pg_catalog.current_schema(),
        'studio_fence'::pg_catalog.text, GREATEST(last, 1::pg_catalog.int8));
    IF last OPERATOR(pg_catalog.>) 0::pg_catalog.int8 THEN
        PERFORM pg_catalog.setval(pg_catalog.format('%I.%I'::pg_catalog.text, pg_catalog.current_schema(),
            'studio_fence'::pg_catalog.text)::pg_catalog.regclass, last, true::pg_catalog.bool);
    END IF;
    RETURN last;
END $$;
COMMENT ON FUNCTION studio_raise_fence(pg_catalog.int8) IS 'Raises studio_fence so that the next fence is above floor, never lowers it, and sets CACHE back to 1. Fences wait for it until its transaction ends. Refuses a step of more than 2^40. Returns where the sequence stands then.';
REVOKE ALL ON FUNCTION studio_raise_fence(pg_catalog.int8) FROM PUBLIC;
