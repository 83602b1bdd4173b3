-- Claims orphans for one pod, begins an attempt of each, and writes the event. A run under which `poison_from` owners
-- in a row crashed is quarantined instead.
--
-- The candidates, with the owner and the fence that each had, come from an earlier statement. If this statement picked
-- and locked the candidates itself, it would read a row that another pod has just claimed again, and take the run from
-- that living owner.
--
-- Arguments:
--   run_ids      uuid[]  the candidates
--   expected     uuid[]  the owner of each, NULL for nobody
--   fences       int8[]  the fence of each
--   own          uuid    the claiming incarnation
--   crashes      text[]  the reasons that count as a crash of the owner
--   floor        int8    the highest fence that this process was ever given
--   poison_from  int4    at this number of crashes in a row a run is quarantined
--   along_bytes  int8    how many bytes of inputs and checkpoints are returned, for all runs together
--
-- Returns a row for each run that was claimed or quarantined (`error` is not NULL). If `unread` is not NULL, input and
-- checkpoint must still be read. It is their size in bytes, as stored. `taken_over` says how the attempt before ended:
-- as its owner's incarnation, `released`, or `adopted`. It is NULL if this is the first attempt.
\set reach `cat part/reach.sql`
\set above `cat part/above.sql`
\set as_expected `cat part/as_expected.sql`
\set crashed `cat part/crashed.sql`
\set died_with `cat part/died_with.sql`
WITH
  wanted AS MATERIALIZED (
    SELECT w.run_id, w.expected, w.fence
      FROM ROWS FROM (unnest(:'run_ids'::uuid[]), unnest(:'expected'::uuid[]), unnest(:'fences'::int8[]))
           AS w (run_id, expected, fence)
  ),
  :reach,
  -- L9: each new fence is above every fence that this process was given, and above those of the claimed runs.
  target AS (
    SELECT GREATEST(:'floor'::int8, (SELECT max(w.fence) FROM wanted w WHERE w.fence <= e.most)) AS floor
      FROM reach e
  ),
  :above,
  -- L2: only a pod that is in the roster and does not drain may claim.
  me AS MATERIALIZED (
    SELECT p.pod_id, p.incarnation,
           p.cordoned_by IS NOT NULL AS is_cordoned
      FROM :"schema".studio_pods p
     WHERE p.incarnation = :'own'::uuid
       AND p.state = 'active'
       AND (SELECT e.rises AND :'floor'::int8 <= e.most FROM reach e)
  ),
  -- Locks the rows in one order, so that two pods cannot deadlock. Skips rows that another transaction has locked
  -- (L12). Each row is looked up by its key: a subquery that locks is not made part of another join.
  picked AS MATERIALIZED (
    SELECT w.run_id, w.expected, w.fence, r.crashes, r.attempt
      FROM (SELECT * FROM wanted WHERE fence <= (SELECT e.most FROM reach e) ORDER BY run_id) w
     CROSS JOIN LATERAL (
           SELECT r.crashes, r.attempt
             FROM :"schema".studio_runs r
            WHERE r.run_id = w.run_id
              AND r.finished_at IS NULL
              AND r.owner_incarnation IS NOT DISTINCT FROM w.expected
              AND r.fence = w.fence
              FOR NO KEY UPDATE SKIP LOCKED) r
  ),
  -- How the owner of each ended, and which of the runs are poison.
  judged AS MATERIALIZED (
    SELECT r.run_id, r.expected, r.fence, w.ended_at, w.reason,
           (r.crashes >= :'poison_from'::int4 - 1 AND :crashed) IS TRUE AS is_poison
      FROM picked r
      LEFT JOIN LATERAL (
           SELECT s.ended_at, s.reason
             FROM :"schema".studio_pod_sessions s
            WHERE s.incarnation = r.expected
           OFFSET 0) w ON true
  ),
  claimed AS (
    UPDATE :"schema".studio_runs r
       SET owner_pod = me.pod_id,
           owner_incarnation = me.incarnation,
           attempt = r.attempt + 1,
           fence = nextval(:'studio_fence'::regclass),
           written = 0,
           crashes = r.crashes + CASE WHEN :crashed THEN 1 ELSE 0 END
      FROM me CROSS JOIN above CROSS JOIN judged w
     WHERE :as_expected
       -- A cordoned pod gets no new runs. It may begin its own again.
       AND (NOT me.is_cordoned OR w.expected IS NOT DISTINCT FROM :'own'::uuid)
       AND (r.crashes >= :'poison_from'::int4 - 1 AND :crashed) IS NOT TRUE
    RETURNING r.run_id, r.kind, r.key, r.fence, r.attempt, r.input, r.checkpoint, r.crashes, r.checkpoint_seq,
              r.movable, r.traceparent, r.owner_pod, r.owner_incarnation, w.expected, w.ended_at, w.reason
  ),
  quarantined AS (
    UPDATE :"schema".studio_runs r
       SET state = 'quarantined',
           finished_at = clock_timestamp(),
           crashes = r.crashes + 1,
           error = format(
             '%s owners in a row died with it, without progress in between: %s',
             r.crashes + 1,
             (SELECT string_agg(
                       format('%s (%s at %s)', o.pod_id, o.reason,
                              to_char(o.ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')),
                       ', ' ORDER BY o.attempt)
                FROM (:died_with LIMIT LEAST(GREATEST(r.crashes + 1, 0), 1000)) o))
      FROM me CROSS JOIN (SELECT * FROM judged j WHERE j.is_poison) w
     WHERE :as_expected
       AND (NOT me.is_cordoned OR w.expected IS NOT DISTINCT FROM :'own'::uuid)
       AND r.crashes >= :'poison_from'::int4 - 1
       AND :crashed
    RETURNING r.run_id, r.kind, r.key, r.attempt, r.crashes, r.error, w.expected, w.ended_at, w.reason,
              (SELECT jsonb_agg(jsonb_build_object('pod', o.pod_id, 'incarnation', o.incarnation,
                                                   'reason', o.reason, 'at', o.ended_at) ORDER BY o.attempt)
                 FROM (:died_with LIMIT LEAST(GREATEST(r.crashes, 0), 1000)) o) AS owners
  ),
  -- The history: closes the attempts that are over, and begins the new ones.
  over AS (
    SELECT c.run_id, c.attempt - 1 AS attempt, c.expected, c.ended_at, c.reason FROM claimed c
    UNION ALL
    SELECT q.run_id, q.attempt, q.expected, q.ended_at, q.reason FROM quarantined q
  ),
  closed AS (
    UPDATE :"schema".studio_run_attempts a
       SET ended_at = COALESCE(c.ended_at, clock_timestamp()),
           reason = CASE WHEN c.expected = :'own'::uuid THEN 'adopted' ELSE COALESCE(c.reason, 'lost') END
      FROM over c
     WHERE a.run_id = c.run_id AND a.attempt = c.attempt AND a.ended_at IS NULL
    RETURNING a.run_id
  ),
  begun AS (
    INSERT INTO :"schema".studio_run_attempts (run_id, attempt, pod_id, incarnation, fence)
    SELECT c.run_id, c.attempt, c.owner_pod, c.owner_incarnation, c.fence FROM claimed c
    RETURNING run_id
  ),
  -- The log comes last: appending takes its lock, which is held until COMMIT. Each step below reads the one before.
  first AS MATERIALIZED (
    SELECT (SELECT count(*) FROM closed) + (SELECT count(*) FROM begun) AS rows
  ),
  summary AS MATERIALIZED (
    SELECT count(*) AS runs,
           COALESCE(jsonb_agg(DISTINCT c.expected) FILTER (WHERE c.expected IS NOT NULL), '[]'::jsonb) AS former
      FROM claimed c CROSS JOIN first
     WHERE first.rows >= 0
  ),
  logged AS MATERIALIZED (
    SELECT :"schema".studio_append_event('claimed'::text, me.pod_id, me.incarnation, me.pod_id,
             jsonb_build_object('runs', y.runs, 'from', y.former)) AS idx
      FROM summary y CROSS JOIN me
     WHERE y.runs > 0
  ),
  told AS MATERIALIZED (
    SELECT q.run_id,
           :"schema".studio_append_event('quarantined'::text, me.pod_id, me.incarnation, me.pod_id,
             jsonb_build_object('run', q.run_id, 'kind', q.kind, 'key', q.key, 'crashes', q.crashes,
                                'owners', q.owners)) AS idx
      FROM (SELECT * FROM quarantined ORDER BY run_id) q CROSS JOIN me CROSS JOIN summary y
     WHERE y.runs >= 0
  ),
  -- The claim returns small payloads, the smallest first. A compressed payload is left out, because its stored size is
  -- not the size that is sent.
  sized AS (
    SELECT c.*,
           COALESCE(pg_column_size(c.input), 0) + COALESCE(pg_column_size(c.checkpoint), 0) AS bytes,
           pg_column_compression(c.input) IS NULL AND pg_column_compression(c.checkpoint) IS NULL AS plain
      FROM claimed c
  ),
  along AS (
    SELECT z.*,
           z.plain AND sum(z.bytes) OVER (ORDER BY z.bytes, z.run_id ROWS UNBOUNDED PRECEDING)
                       <= :'along_bytes'::int8 AS rides
      FROM sized z
  )
SELECT c.run_id, c.kind, c.key, c.fence, c.attempt,
       CASE WHEN c.rides THEN c.input END AS input,
       CASE WHEN c.rides THEN c.checkpoint END AS checkpoint,
       c.crashes, c.checkpoint_seq, c.movable, c.traceparent,
       NULL AS error,
       CASE WHEN NOT c.rides THEN c.bytes END AS unread,
       CASE WHEN c.attempt <= 1 THEN NULL
            WHEN c.expected IS NULL THEN 'released'
            WHEN c.expected = :'own'::uuid THEN 'adopted'
            ELSE COALESCE(c.reason, 'lost')
       END AS taken_over
  FROM along c
  CROSS JOIN logged
UNION ALL
SELECT q.run_id, q.kind, NULL, 0, 0, NULL, NULL, 0, 0, false, NULL, q.error, NULL, NULL
  FROM quarantined q
  JOIN told t ON t.run_id = q.run_id;
