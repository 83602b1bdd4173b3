-- Deletes those of the given incarnations that ended long ago.
--
-- Arguments:
--   incarnations  uuid[]  the incarnations
--   keep_s        float8  how long they are kept after their end, in seconds
--
-- Returns one row. `gone` is NULL if another session is pruning.
SELECT p.gone, p.handled, p.kept, p.reasons, p.codes
  FROM :"schema".studio_prune_named_sessions(:'incarnations'::uuid[], make_interval(secs => :'keep_s'::float8)) p;
