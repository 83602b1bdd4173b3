-- Quarantines a run whose row fails every claim, if its row has not changed since it was read and its owner is gone.
-- Writes the event (L12).
--
-- The value that made the claim fail must not make this statement fail too, nor a claim after `studio_release`. So this
-- statement computes nothing from the row, and sets each number that is out of bounds to one within. The run's error
-- and the event have the original numbers.
--
-- Arguments:
--   own       uuid  the incarnation that quarantines
--   run_id    uuid
--   expected  uuid  the owner as it was read, NULL for nobody
--   fence     int8  the fence as it was read
--   jump      int8  a fence that is more than this above the sequence was set by hand (`protocol::fences::JUMP`)
--   why       text  why no pod can claim the run
--
-- Returns a row if the run was quarantined.
WITH
  -- Only a pod that is in the roster and does not drain may quarantine.
  me AS MATERIALIZED (
    SELECT p.pod_id, p.incarnation
      FROM :"schema".studio_pods p
     WHERE p.incarnation = :'own'::uuid
       AND p.state = 'active'
  ),
  -- L5, L6: as in a claim, the row has not changed since it was read, and its owner is not in the roster. Skips a row
  -- that another transaction has locked (L12).
  bad AS MATERIALIZED (
    SELECT r.run_id, r.kind, r.key, r.attempt, r.crashes, r.fence,
           COALESCE((SELECT max(a.attempt)
                       FROM :"schema".studio_run_attempts a
                      WHERE a.run_id = r.run_id AND a.attempt BETWEEN 1 AND 2147483645), 0) AS attempts,
           -- As numeric, because the difference of two int8 may not fit into an int8.
           r.fence - COALESCE(pg_sequence_last_value(:'studio_fence'::regclass), 0)::numeric
             > :'jump'::int8 AS is_beyond
      FROM :"schema".studio_runs r CROSS JOIN me
     WHERE r.run_id = :'run_id'::uuid
       AND r.state = 'running'
       AND r.owner_incarnation IS NOT DISTINCT FROM :'expected'::uuid
       AND r.fence = :'fence'::int8
       AND (:'expected'::uuid IS NULL
            OR :'expected'::uuid = :'own'::uuid
            OR NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = :'expected'::uuid))
       FOR NO KEY UPDATE OF r SKIP LOCKED
  ),
  aside AS (
    UPDATE :"schema".studio_runs r
       SET state = 'quarantined',
           finished_at = clock_timestamp(),
           error = format('no pod can claim it: %s (attempt %s, crashes %s, fence %s)', :'why'::text,
                          b.attempt, b.crashes, b.fence),
           -- The next attempt's number is after those of the recorded attempts.
           attempt = CASE WHEN b.attempt >= 2147483646 THEN b.attempts ELSE GREATEST(b.attempt, b.attempts) END,
           crashes = CASE WHEN b.crashes BETWEEN 0 AND 2147483645 THEN b.crashes ELSE 0 END,
           -- A fence that no pod was given is replaced by a new one. Any other fence stays, because fences only rise
           -- (L9).
           fence = CASE WHEN b.is_beyond OR b.fence < 0 THEN nextval(:'studio_fence'::regclass) ELSE b.fence END,
           written = GREATEST(r.written, 0),
           checkpoint_seq = GREATEST(r.checkpoint_seq, 0),
           stream_generation = GREATEST(r.stream_generation, 1),
           stream_resets = GREATEST(r.stream_resets, 0),
           stream_furthest = GREATEST(r.stream_furthest, 0)
      FROM bad b
     WHERE r.run_id = b.run_id
    RETURNING r.run_id, r.error, b.kind, b.key, b.attempt, b.crashes, b.fence
  ),
  closed AS (
    UPDATE :"schema".studio_run_attempts a
       SET ended_at = clock_timestamp(),
           reason = 'lost'
      FROM aside s
     WHERE a.run_id = s.run_id AND a.ended_at IS NULL AND a.attempt >= 1
    RETURNING a.run_id
  ),
  -- The log comes last: appending takes its lock, which is held until COMMIT. The SELECT below reads this step.
  first AS MATERIALIZED (
    SELECT count(*) AS rows FROM closed
  )
SELECT :"schema".studio_append_event('quarantined'::text, me.pod_id, me.incarnation, me.pod_id,
         jsonb_build_object('run', s.run_id, 'kind', s.kind, 'key', s.key, 'crashes', s.crashes,
                            'attempt', s.attempt, 'fence', s.fence, 'why', :'why'::text)) AS idx
  FROM aside s CROSS JOIN me CROSS JOIN first
 WHERE first.rows >= 0;
