-- The backlog by kind, for autoscalers, and the trace that a run belongs to.

SET LOCAL search_path = pg_catalog, pg_temp;

ALTER TABLE @.studio_runs ADD COLUMN traceparent text;
COMMENT ON COLUMN @.studio_runs.traceparent IS 'The trace that the run belongs to, as W3C Trace Context writes it. NULL: none was given.';
