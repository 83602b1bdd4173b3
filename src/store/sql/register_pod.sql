-- Registers a new incarnation of a pod's name. It replaces the one before.
--
-- Arguments:
--   pod               text         the pod's name
--   version           text         the version that the service gave itself
--   labels            jsonb        free key-value pairs of the service
--   own               uuid         the new incarnation
--   lock_key          int8         its liveness key
--   witness_key       int8         its witness key
--   liveness_pid      int4         the backend of the liveness session, which runs this statement
--   liveness_started  timestamptz  when that backend began
--   control_pid       int4         the backend of the control session; NULL where there is none yet
--   control_started   timestamptz  when that backend began
--   given_up          uuid         an incarnation of this process that gave itself up (L7); NULL: none
--   kinds             text[]       the kinds that the pod has a handler for
--   capacity          int4         how many runs it executes at a time, at most
--   beat_ms           int4         how often it beats, at most
--   lease_ms          int4         its lease
--   self_fence_ms     int4         after how long without an answer it stops its runs (L7)
--   channel           text         the NOTIFY channel on which only this pod listens
--   cordoned_by       text         who cordoned this process under its incarnation before; NULL: nobody
--   capacity_of       jsonb        the kinds with a limit of their own, as an object of numbers; NULL: none
--
-- Returns one row, or none if this session does not hold the lock.
\set holds_twice `cat part/holds_twice.sql`
INSERT INTO :"schema".studio_pods AS p
       (pod_id, version, labels, event_index, incarnation, lock_key, witness_key, liveness_pid, liveness_started,
        control_pid, control_started, kinds, capacity, beat_ms, lease_ms, self_fence_ms, channel, channel_of,
        cordoned_by, capacity_of)
SELECT :'pod'::text, :'version'::text, :'labels'::jsonb, nextval(:'studio_beat'::regclass), :'own'::uuid,
       :'lock_key'::int8, :'witness_key'::int8, :'liveness_pid'::int4, :'liveness_started'::timestamptz,
       :'control_pid'::int4, :'control_started'::timestamptz, :'kinds'::text[], :'capacity'::int4, :'beat_ms'::int4,
       :'lease_ms'::int4, :'self_fence_ms'::int4, :'channel'::text, :'own'::uuid,
       :'cordoned_by'::text, :'capacity_of'::jsonb
 -- L1: lock before row. The session that registers must hold the lock, and a pooler must not have swapped its backend.
 WHERE :'liveness_pid'::int4 = pg_backend_pid()
   AND :holds_twice
ON CONFLICT (pod_id) DO UPDATE
   SET state = 'active',
       started_at = now(),
       version = EXCLUDED.version,
       labels = EXCLUDED.labels,
       event_index = EXCLUDED.event_index,
       beat_at = now(),
       -- A request to drain stays if this process registers again after it gave itself up.
       drain_requested = CASE WHEN p.incarnation = :'given_up'::uuid THEN p.drain_requested END,
       -- The next process of the name begins without a cordon.
       cordoned_by = EXCLUDED.cordoned_by,
       incarnation = EXCLUDED.incarnation,
       session = 1,
       evicted = NULL,
       standing = NULL,
       lock_key = EXCLUDED.lock_key,
       witness_key = EXCLUDED.witness_key,
       liveness_pid = EXCLUDED.liveness_pid,
       liveness_started = EXCLUDED.liveness_started,
       control_pid = EXCLUDED.control_pid,
       control_started = EXCLUDED.control_started,
       kinds = EXCLUDED.kinds,
       capacity = EXCLUDED.capacity,
       capacity_of = EXCLUDED.capacity_of,
       beat_ms = EXCLUDED.beat_ms,
       lease_ms = EXCLUDED.lease_ms,
       self_fence_ms = EXCLUDED.self_fence_ms,
       channel = EXCLUDED.channel,
       -- A pod of an older version that takes the name leaves both.
       channel_of = EXCLUDED.channel_of
RETURNING p.pod_id;
