  -- The label by which the scores are made from now on. Pods of a fleet that is half rolled out name different labels. The
  -- one in force stays while a pod uses it. L8: a time in the future comes from a clock that has jumped back, and counts as
  -- long ago.
  CASE WHEN :'label'::text IS NULL THEN r.score_by
       WHEN :'unused_s'::float8 IS NULL OR r.label_at IS NULL
            OR r.label_at < clock_timestamp() - make_interval(secs => :'unused_s'::float8)
            OR r.label_at > clock_timestamp() + make_interval(secs => :'unused_s'::float8) THEN :'label'::text
       ELSE r.score_by END
