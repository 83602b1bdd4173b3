-- A write that comes late, after a later one of the same attempt, changes nothing.

ALTER TABLE studio_runs ADD COLUMN written bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN studio_runs.written IS 'The number of the last write of this attempt that was accepted. A write whose connection was given up can arrive long after the next one: it bears a lower number, and is refused.';
