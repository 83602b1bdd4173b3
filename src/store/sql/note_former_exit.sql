-- Records how the process before this one ended that had the same name: as the service or its supervisor says, or as the
-- cgroup shows that both processes ran in. It skips a row that another transaction has locked.
--
-- Arguments:
--   own          uuid   the first incarnation of this process
--   pod          text   the pod's name
--   exit_code    int4   the exit code of the former process; NULL: unknown, or a signal ended it
--   exit_signal  int4   the signal that ended it; NULL: none, or unknown
--   cause        text   the cause that this shows; NULL: none
--   before       uuid   the former incarnation; NULL: the newest of the name before `own`
--
-- Returns one row, or none if nothing was recorded.
WITH
  own AS MATERIALIZED (
    SELECT o.began_at, o.cgroup
      FROM :"schema".studio_pod_sessions o
     WHERE o.incarnation = :'own'::uuid
  ),
  newest AS MATERIALIZED (
    SELECT f.incarnation, f.began_at, f.reason, f.cgroup
      FROM own
     CROSS JOIN LATERAL (SELECT s.incarnation, s.began_at, s.reason, s.cgroup
                           FROM :"schema".studio_pod_sessions s
                          WHERE s.pod_id = :'pod'::text
                            AND s.began_at <= own.began_at
                            AND s.incarnation <> :'own'::uuid
                            AND (:'before'::uuid IS NULL OR s.incarnation = :'before'::uuid)
                          ORDER BY s.began_at DESC, s.incarnation DESC
                          LIMIT 1) f
  ),
  -- The cgroup's count has grown since the former process registered, and no other pod ran in the cgroup meanwhile, of
  -- which the victim may have been.
  lacked_memory AS MATERIALIZED (
    SELECT count(*) > 0 AS is_so
      FROM own CROSS JOIN newest n
     WHERE n.reason = 'lost'
       AND n.cgroup->>'id' = own.cgroup->>'id'
       AND (n.cgroup->>'oom_kills')::int8 < (own.cgroup->>'oom_kills')::int8
       AND NOT EXISTS (SELECT FROM :"schema".studio_pod_sessions s
                        WHERE s.ended_at > n.began_at
                          AND s.began_at < own.began_at
                          AND s.incarnation <> n.incarnation
                          AND s.cgroup->>'id' = own.cgroup->>'id')
       AND NOT EXISTS (SELECT FROM :"schema".studio_pod_sessions s
                        WHERE s.ended_at IS NULL
                          AND s.incarnation <> :'own'::uuid
                          AND s.cgroup->>'id' = own.cgroup->>'id')
  ),
  former AS MATERIALIZED (
    SELECT n.incarnation,
           COALESCE(:'cause'::text, CASE WHEN l.is_so THEN 'out_of_memory' END) AS cause
      FROM newest n CROSS JOIN lacked_memory l
  )
UPDATE :"schema".studio_pod_sessions s
   SET exit_code = COALESCE(:'exit_code'::int4, s.exit_code),
       exit_signal = COALESCE(:'exit_signal'::int4, s.exit_signal),
       -- A cause that the pod wrote itself stays.
       cause = CASE WHEN COALESCE(s.cause, 'closed') IN ('closed', 'silent', 'unrecorded')
                    THEN COALESCE(former.cause, s.cause)
                    ELSE s.cause END
  FROM former
 WHERE s.incarnation IN (
         SELECT o.incarnation
           FROM :"schema".studio_pod_sessions o
          WHERE o.incarnation = former.incarnation
            AND o.ended_at IS NOT NULL
            -- A clean stop has no cause, and what was recorded of an exit is not overwritten.
            AND o.reason <> 'shutdown'
            AND o.exit_code IS NULL
            AND o.exit_signal IS NULL
            FOR NO KEY UPDATE SKIP LOCKED
       )
   AND s.incarnation = former.incarnation
   AND (former.cause IS NOT NULL OR :'exit_code'::int4 IS NOT NULL OR :'exit_signal'::int4 IS NOT NULL)
RETURNING s.incarnation, s.cause;
