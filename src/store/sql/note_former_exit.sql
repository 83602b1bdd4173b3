-- Records how the process before this one ended that had the same name: as the service or its supervisor says, or as the
-- cgroup shows that both processes ran in. It skips a row that another transaction has locked.
--
-- Arguments:
--   own          uuid   the first incarnation of this process
--   pod          text   the pod's name
--   exit_code    int4   the exit code of the former process; NULL: unknown, or a signal ended it
--   exit_signal  int4   the signal that ended it; NULL: none, or unknown
--   cause        text   the cause that this shows; NULL: none
--
-- Returns one row, or none if nothing was recorded.
WITH
  own AS MATERIALIZED (
    SELECT o.began_at, o.cgroup
      FROM :"schema".studio_pod_sessions o
     WHERE o.incarnation = :'own'::uuid
  ),
  former AS MATERIALIZED (
    SELECT f.incarnation,
           COALESCE(:'cause'::text,
             -- The count of the cgroup has grown since the former process registered.
             CASE WHEN f.cgroup->>'id' = own.cgroup->>'id'
                   AND (f.cgroup->>'oom_kills')::int8 < (own.cgroup->>'oom_kills')::int8
                  THEN 'out_of_memory' END) AS cause
      FROM own
     CROSS JOIN LATERAL (SELECT s.incarnation, s.cgroup
                           FROM :"schema".studio_pod_sessions s
                          WHERE s.pod_id = :'pod'::text
                            AND s.began_at <= own.began_at
                            AND s.incarnation <> :'own'::uuid
                          ORDER BY s.began_at DESC, s.incarnation DESC
                          LIMIT 1) f
  )
UPDATE :"schema".studio_pod_sessions s
   SET exit_code = COALESCE(:'exit_code'::int4, s.exit_code),
       exit_signal = COALESCE(:'exit_signal'::int4, s.exit_signal),
       -- A cause that the pod wrote itself stays. A clean stop has none.
       cause = CASE WHEN s.reason <> 'shutdown' AND COALESCE(s.cause, 'closed') IN ('closed', 'silent', 'unrecorded')
                    THEN COALESCE(former.cause, s.cause)
                    ELSE s.cause END
  FROM former
 WHERE s.incarnation IN (
         SELECT o.incarnation
           FROM :"schema".studio_pod_sessions o
          WHERE o.incarnation = former.incarnation
            AND o.ended_at IS NOT NULL
            FOR NO KEY UPDATE SKIP LOCKED
       )
   AND s.incarnation = former.incarnation
   AND (former.cause IS NOT NULL OR :'exit_code'::int4 IS NOT NULL OR :'exit_signal'::int4 IS NOT NULL)
RETURNING s.incarnation, s.cause;
