-- Replaces the first events of the log by a snapshot of the roster.
--
-- Arguments:
--   keep_s       float8  how long events are kept, in seconds
--   first_event  int8    the position of the log's first event
--   last_event   int8    the position of the last event to replace
--   snapshot     jsonb   the roster as it was after that event
--   by_pod       text    the name of the pruning pod; NULL: the role that the session logged in with
--   own          uuid    the incarnation of that pod; the nil UUID if it is no pod
--
-- Returns one row. `gone` is NULL if another session is pruning, or has pruned since the events were read.
SELECT :"schema".studio_prune_events(make_interval(secs => :'keep_s'::float8), :'first_event'::int8,
         :'last_event'::int8, :'snapshot'::jsonb, COALESCE(:'by_pod'::text, SESSION_USER::text)::text,
         :'own'::uuid) AS gone;
