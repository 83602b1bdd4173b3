-- Records that this incarnation holds its lock again, on a new session (L1).
--
-- Arguments:
--   pod            text         the pod's name
--   own            uuid         the incarnation
--   pid            int4         the backend of the new session
--   started        timestamptz  when that backend began
--   lease_ms       int4         its lease
--   self_fence_ms  int4         after how long without an answer it stops its runs (L7)
--   lock_key       int8         its liveness key
--
-- Returns one row with the number of the new session, or none if the incarnation was buried or evicted.
\set holds_twice `cat part/holds_twice.sql`
UPDATE :"schema".studio_pods p
   -- A pod that read the row before sees by the number that this pod has returned (L2).
   SET session = p.session + 1,
       liveness_pid = :'pid'::int4,
       liveness_started = :'started'::timestamptz,
       lease_ms = :'lease_ms'::int4,
       self_fence_ms = :'self_fence_ms'::int4
 WHERE p.pod_id = :'pod'::text
   AND p.incarnation = :'own'::uuid
   AND p.evicted IS NULL
   AND p.lock_key = :'lock_key'::int8
   AND :'pid'::int4 = pg_backend_pid()
   AND :holds_twice
RETURNING p.session;
