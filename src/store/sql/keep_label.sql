-- Says that a pod uses the label by which scores are made, so that no pod of another configuration replaces it.
--
-- Arguments:
--   label     text    the label that the pod is to score by, `` for none
--   every_s   float8  how old the last such word must be, in seconds, before it is written again
--   unused_s  float8  for how long nobody may have used another label before this one replaces it, in seconds
--
-- Returns one row: the label in force if it is another and stays, else NULL. A row that another transaction has locked is
-- passed over.
\set label_in_force `cat part/label_in_force.sql`
WITH kept AS (
    UPDATE :"schema".studio_roll_ups k SET label_at = clock_timestamp()
     WHERE k.what = (SELECT d.what FROM :"schema".studio_roll_ups d
                      WHERE d.what = 'reliability' AND d.score_by = :'label'::text
                        AND (d.label_at IS NULL OR d.label_at > clock_timestamp()
                             OR d.label_at < clock_timestamp() - make_interval(secs => :'every_s'::float8))
                        FOR UPDATE SKIP LOCKED)
    RETURNING 1
)
SELECT (SELECT NULLIF(:label_in_force, :'label'::text) FROM :"schema".studio_roll_ups r WHERE r.what = 'reliability') AS other,
       (SELECT count(*) FROM kept) AS kept;
