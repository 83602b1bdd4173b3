-- Reads workers by their ids.
--
-- Arguments:
--   own      uuid    the incarnation of the reading pod
--   workers  uuid[]  the workers, at most some hundreds
--
-- Returns a row for each of them that is there.
\set worker_mark `cat part/worker_mark.sql`
\set worker_columns `cat part/worker_columns.sql`
SELECT w.worker_id, :worker_columns
  FROM :"schema".studio_workers w
  LEFT JOIN :"schema".studio_pods p ON p.incarnation = w.owner_incarnation
 WHERE w.worker_id = ANY (:'workers'::uuid[]);
