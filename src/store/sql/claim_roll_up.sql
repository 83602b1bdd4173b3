-- Begins a roll-up, or continues it, if it is due and nobody else is at it. A row that another transaction has locked is not
-- waited for.
--
-- Arguments:
--   what     text    `hourly` or `reliability`
--   token    uuid    whose roll-up it becomes: each further write of it names this token
--   by_pod   text    the name of the pod; NULL: an operator
--   label    text    the label to score by, `` for none; NULL: as the last roll-up did
--   every_s  float8  how old the last one must be, in seconds; NULL: it is wanted at once, from its beginning
--   claim_s  float8  how long another may be silent before its roll-up is continued, in seconds
--
-- Returns the state, and the server's time. No row: it is not due, or another is at it.
UPDATE :"schema".studio_roll_ups r
   SET token = :'token'::uuid, claimed_by = :'by_pod'::text, claimed_at = now(),
       score_by = COALESCE(:'label'::text, r.score_by),
       -- From the beginning if it is wanted at once, or if the slices were those of other keys.
       slice = CASE WHEN :'every_s'::float8 IS NULL OR :'label'::text <> r.score_by THEN NULL ELSE r.slice END,
       slices = CASE WHEN :'every_s'::float8 IS NULL OR :'label'::text <> r.score_by THEN NULL ELSE r.slices END
 WHERE r.what = (
    SELECT d.what FROM :"schema".studio_roll_ups d
     WHERE d.what = :'what'::text
       -- L8: by the server's clock. A time in the future comes from a clock that has jumped back, and counts as long ago.
       AND (d.token IS NULL OR d.token = :'token'::uuid
            OR d.claimed_at < now() - make_interval(secs => :'claim_s'::float8) OR d.claimed_at > now())
       AND (:'every_s'::float8 IS NULL OR d.token IS NOT NULL OR d.done_at IS NULL
            OR d.done_at <= now() - make_interval(secs => :'every_s'::float8) OR d.done_at > now())
       FOR UPDATE SKIP LOCKED)
RETURNING r.upto, r.slice, r.slices, r.score_by, now() AS now, date_trunc('hour', now(), 'UTC') AS hour;
