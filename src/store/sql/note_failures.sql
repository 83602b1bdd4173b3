-- Appends failures of runs to the event log: one event for each kind.
--
-- Arguments:
--   pod     text    the name of the pod on which the runs failed
--   own     uuid    its incarnation
--   kinds   text[]  the kinds
--   counts  int8[]  how many runs of each kind failed
--   runs    uuid[]  the last run of each kind that failed
--   errors  text[]  the beginning of the error of each of these runs
--
-- Returns one row.
SELECT :"schema".studio_note_failures(:'pod'::text, :'own'::uuid, :'kinds'::text[], :'counts'::int8[],
         :'runs'::uuid[], :'errors'::text[]) AS noted;
