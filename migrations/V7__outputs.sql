-- What runs put out, stored once: a result, or a text.

ALTER TABLE studio_runs
    ADD COLUMN stdout text NOT NULL DEFAULT '',
    ADD COLUMN stderr text NOT NULL DEFAULT '',
    ADD COLUMN exit_code integer,
    ADD COLUMN output_escaped boolean NOT NULL DEFAULT false,
    ADD COLUMN parse_error text,
    ADD CONSTRAINT studio_runs_output_check CHECK (result IS NULL OR stdout = ''),
    ADD CONSTRAINT studio_runs_parse_error_check CHECK (result IS NULL OR parse_error IS NULL);

COMMENT ON COLUMN studio_runs.result IS 'What the run returned, or its standard output parsed to; then stdout is empty. JSON''s null is a result; SQL''s NULL is none.';
COMMENT ON COLUMN studio_runs.stdout IS 'Its standard output as text; empty where there is a result.';
COMMENT ON COLUMN studio_runs.stderr IS 'Its standard error.';
COMMENT ON COLUMN studio_runs.exit_code IS 'With what its program ended; NULL: there was none, or a signal ended it.';
COMMENT ON COLUMN studio_runs.output_escaped IS 'True if stdout or stderr had bytes that no text can hold (U+0000, invalid UTF-8). Then in both a backslash is written \\ and such a byte \x00.';
COMMENT ON COLUMN studio_runs.parse_error IS 'Why standard output that was to be parsed is kept as text; NULL: it was not to be, or it was.';
