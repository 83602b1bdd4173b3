-- Runs under any search_path, as `identify.sql`.
--
-- Turns `synchronous_commit` on for the session, if the role or the database has it off: a confirmed commit must
-- survive a crash. Settings that are stronger or weaker than `on` are about standbys, and stay as they are.
SELECT pg_catalog.set_config('synchronous_commit'::pg_catalog.text, 'on'::pg_catalog.text, false)
 WHERE pg_catalog.current_setting('synchronous_commit'::pg_catalog.text) OPERATOR(pg_catalog.=) 'off'::pg_catalog.text;
