-- Records how the process behind an open incarnation ended. It skips a row that another transaction has locked.
--
-- Arguments:
--   own          uuid   the incarnation
--   exit_code    int4   the exit code of the process; NULL: unknown, or a signal ended it
--   exit_signal  int4   the signal that ended the process; NULL: none, or unknown
--   cause        text   the cause that this shows; NULL: none
--   cgroup       jsonb  the cgroup of the pod's process now; NULL: unknown, or the end was asked for
--
-- Returns one row, or none if nothing was recorded.
UPDATE :"schema".studio_pod_sessions s
   SET exit_code = :'exit_code'::int4,
       exit_signal = :'exit_signal'::int4,
       cause = COALESCE(s.cause,
                 -- SIGKILL, and the count of the cgroup has grown since the pod registered.
                 CASE WHEN :'exit_signal'::int4 = 9
                       AND s.cgroup->>'id' = :'cgroup'::jsonb->>'id'
                       AND (s.cgroup->>'oom_kills')::int8 < (:'cgroup'::jsonb->>'oom_kills')::int8
                      THEN 'out_of_memory' END,
                 :'cause'::text)
 WHERE s.incarnation IN (
         SELECT o.incarnation
           FROM :"schema".studio_pod_sessions o
          WHERE o.incarnation = :'own'::uuid
            FOR NO KEY UPDATE SKIP LOCKED
       )
RETURNING s.incarnation;
