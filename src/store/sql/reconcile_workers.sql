-- A pod of the worker registry reports its workers, says how far it has read, and compares its copy with the store.
--
-- The comparison is by buckets: the workers whose id begins with the same byte. Of each bucket the server returns one sum
-- over the marks of its workers. So the answer does not grow with the workers, except for those that were not probed.
--
-- Arguments:
--   own        uuid         the incarnation of the pod
--   reports    bool         whether the pod has workers to report
--   report_ms  int4         how often it does
--   unprobed   uuid[]       its workers that it could not probe, which the report does not include
--   newly      uuid[]       those of them that the report before included. Their rows keep that report.
--   read_to    pg_snapshot  the snapshot of its last read, as text, NULL if it has read nothing yet
--
-- Returns one row. `is_member` is false if the incarnation is not in the roster; then nothing was written.
\set worker_mark `cat part/worker_mark.sql`
WITH
  me AS MATERIALIZED (
    SELECT p.incarnation FROM :"schema".studio_pods p WHERE p.incarnation = :'own'::uuid FOR KEY SHARE
  ),
  former AS MATERIALIZED (
    SELECT r.report, r.reported_at FROM :"schema".studio_worker_pods r WHERE r.incarnation = :'own'::uuid
  ),
  kept AS (
    UPDATE :"schema".studio_workers w
       SET since_report = former.report, reported_at = former.reported_at
      FROM former
     CROSS JOIN me
     WHERE w.worker_id IN (SELECT k.worker_id
                             FROM :"schema".studio_workers k
                            WHERE k.worker_id = ANY (:'newly'::uuid[])
                              AND k.owner_incarnation = :'own'::uuid
                            ORDER BY k.worker_id
                              FOR UPDATE SKIP LOCKED)
       AND former.report > w.since_report
    RETURNING w.worker_id, :worker_mark AS mark
  ),
  entered AS (
    INSERT INTO :"schema".studio_worker_pods AS r (incarnation, report, reported_at, report_ms, unprobed, read_to)
    SELECT me.incarnation, :'reports'::bool::int4, CASE WHEN :'reports'::bool THEN clock_timestamp() END,
           :'report_ms'::int4, :'unprobed'::uuid[], :'read_to'::text::pg_snapshot
      FROM me
        ON CONFLICT (incarnation) DO UPDATE
       SET report = r.report + EXCLUDED.report, reported_at = COALESCE(EXCLUDED.reported_at, r.reported_at),
           report_ms = EXCLUDED.report_ms, unprobed = EXCLUDED.unprobed, read_to = EXCLUDED.read_to
    RETURNING r.report
  ),
  -- Three columns of an index: the rows themselves are not read.
  live AS (
    SELECT get_byte(uuid_send(w.worker_id), 0) AS bucket, bit_xor(:worker_mark) AS sum
      FROM :"schema".studio_workers w
     WHERE EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = w.owner_incarnation)
     GROUP BY 1
  ),
  reports AS MATERIALIZED (
    SELECT r.incarnation, r.report, r.report_ms, r.reported_at, r.unprobed
      FROM :"schema".studio_worker_pods r
      JOIN :"schema".studio_pods p ON p.incarnation = r.incarnation
     WHERE r.report > 0
  )
SELECT pg_current_snapshot()::text AS snapshot,
       pg_postmaster_start_time() AS server,
       EXISTS (SELECT FROM entered) AS is_member,
       (SELECT entered.report FROM entered) AS own_report,
       ARRAY(SELECT kept.worker_id FROM kept ORDER BY kept.worker_id) AS kept,
       ARRAY(SELECT kept.mark FROM kept ORDER BY kept.worker_id) AS kept_marks,
       ARRAY(SELECT live.bucket FROM live ORDER BY live.bucket) AS buckets,
       ARRAY(SELECT live.sum FROM live ORDER BY live.bucket) AS sums,
       ARRAY(SELECT reports.incarnation FROM reports ORDER BY reports.incarnation) AS pods,
       ARRAY(SELECT reports.report FROM reports ORDER BY reports.incarnation) AS reports,
       ARRAY(SELECT reports.reported_at FROM reports ORDER BY reports.incarnation) AS reported_at,
       ARRAY(SELECT COALESCE(reports.report_ms, 0) FROM reports ORDER BY reports.incarnation) AS report_ms,
       ARRAY(SELECT named.worker_id FROM reports CROSS JOIN unnest(reports.unprobed) AS named (worker_id)) AS unprobed,
       -- Whether a pod in the roster is the monitor of workers, and the number of the monitors' rounds so far.
       EXISTS (SELECT FROM :"schema".studio_worker_monitor m
                 JOIN :"schema".studio_pods p ON p.incarnation = m.incarnation) AS is_monitored,
       COALESCE((SELECT m.looks FROM :"schema".studio_worker_monitor m), 0) AS looks;
