-- Deletes those of the given runs that ended long ago.
--
-- Arguments:
--   run_ids     uuid[]  the runs
--   keep_s      float8  how long runs are kept after their end, in seconds
--   chunks_max  int4    how many chunks to delete at most
--
-- Returns one row. `gone` is NULL if another session is pruning.
SELECT p.gone, p.handled, p.kept, p.reasons, p.codes
  FROM :"schema".studio_prune_named_runs(:'run_ids'::uuid[], make_interval(secs => :'keep_s'::float8),
         :'chunks_max'::int4) p;
