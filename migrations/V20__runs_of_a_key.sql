-- The newest run of a kind and key, also after its end. The unique index knows only what is running.

CREATE INDEX studio_runs_by_key ON studio_runs (kind, key, created_at DESC, run_id DESC) WHERE key IS NOT NULL;
