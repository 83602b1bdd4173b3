  -- Durations as the server shows them, such as `200ms` or `1min`. This is much cheaper than pg_settings, which
  -- formats every setting of the server.
  pg_catalog.current_setting('deadlock_timeout'::pg_catalog.text) AS deadlock_timeout,
  pg_catalog.current_setting('log_min_duration_statement'::pg_catalog.text) AS log_min_duration_statement,
  pg_catalog.current_setting('log_min_duration_sample'::pg_catalog.text, true) AS log_min_duration_sample,
  -- A configuration can have this setting without the library auto_explain. Then the setting is a mere text, and
  -- pg_settings leaves it out. So pg_settings is read only if the setting is there.
  CASE WHEN pg_catalog.current_setting('auto_explain.log_min_duration'::pg_catalog.text, true) IS NOT NULL
       THEN (SELECT s.setting
               FROM pg_catalog.pg_settings s
              WHERE s.name OPERATOR(pg_catalog.=) 'auto_explain.log_min_duration'::pg_catalog.text)
  END AS auto_explain_log_min_duration
