-- As version 16, for attempts.

ALTER TABLE studio_run_attempts
    ADD CONSTRAINT studio_run_attempts_attempt_check
        CHECK (attempt OPERATOR(pg_catalog.>=) 1::pg_catalog.int4) NOT VALID;
