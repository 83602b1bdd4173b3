-- Reads the workers that were written or removed since an earlier read: those whose transaction was not visible in the
-- snapshot of that read. So none is missed, in whatever order transactions commit.
--
-- Arguments:
--   own    uuid         the incarnation of the reading pod
--   seen   pg_snapshot  the snapshot of the earlier read, as text
--   after  uuid         the last worker of the page before, NULL for the first page
--   most   int8         the most workers to return
--
-- Returns a row for each worker, in the order of their ids, with the snapshot of this read. Without a `url` the worker was
-- removed. If nothing has changed, returns one row without a worker.
\set worker_mark `cat part/worker_mark.sql`
\set worker_columns `cat part/worker_columns.sql`
WITH
  taken AS MATERIALIZED (
    SELECT pg_current_snapshot() AS snapshot, pg_snapshot_xmax(pg_current_snapshot()) AS upto,
           :'seen'::text::pg_snapshot AS seen, pg_snapshot_xmin(:'seen'::text::pg_snapshot) AS from_here
  ),
  -- In the order of an index, which ends where `seen` begins. Rows from a dump of another server may name transactions of
  -- the future; the comparison of the whole copy finds those.
  changed AS (
    (SELECT c.worker_id
       FROM :"schema".studio_workers c
      WHERE c.changed_in >= (SELECT taken.from_here FROM taken)
        AND c.changed_in < (SELECT taken.upto FROM taken)
        AND NOT pg_visible_in_snapshot(c.changed_in, (SELECT taken.seen FROM taken))
      ORDER BY c.changed_in, c.worker_id
     OFFSET 0)
     UNION
    (SELECT t.worker_id
       FROM :"schema".studio_worker_tombstones t
      WHERE t.removed_in >= (SELECT taken.from_here FROM taken)
        AND t.removed_in < (SELECT taken.upto FROM taken)
        AND NOT pg_visible_in_snapshot(t.removed_in, (SELECT taken.seen FROM taken))
      ORDER BY t.removed_in, t.worker_id
     OFFSET 0)
  ),
  page AS (
    SELECT changed.worker_id
      FROM changed
     WHERE :'after'::uuid IS NULL OR changed.worker_id > :'after'::uuid
     ORDER BY changed.worker_id
     LIMIT :'most'::int8
  )
SELECT taken.snapshot::text AS snapshot, page.worker_id, :worker_columns
  FROM taken
  LEFT JOIN page ON true
  -- One look into the index for each worker of the page. The planner expects far more of them than there mostly are, and
  -- would read the whole table; OFFSET keeps it from that.
  LEFT JOIN LATERAL (SELECT o.* FROM :"schema".studio_workers o WHERE o.worker_id = page.worker_id OFFSET 0) w ON true
  LEFT JOIN :"schema".studio_pods p ON p.incarnation = w.owner_incarnation
 ORDER BY page.worker_id;
