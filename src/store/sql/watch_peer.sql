-- Waits one slice for the locks of a peer, and keeps none.
--
-- Arguments:
--   key         int8  the peer's liveness key
--   witness     int8  its witness key
--   slice_ms    int4  how long to wait for the liveness lock
--   witness_ms  int4  how long to wait for the witness lock after that
--   tell        bool  whether to notify every pod if a lock came free
--
-- Returns one row. `answer` is `held`, `liveness` (the liveness lock came free) or `both`. `roster_version` is the
-- position of the log's last event.
SELECT w.answer, w.roster_version
  FROM :"schema".studio_watch(:'key'::int8, :'witness'::int8, :'slice_ms'::int4, :'witness_ms'::int4, :'tell'::bool) w;
