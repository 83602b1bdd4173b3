-- Reads the ids and marks of the workers in some buckets (`reconcile_workers.sql`), page by page.
--
-- Arguments:
--   buckets  int4[]  the buckets
--   after    uuid    the last worker of the page before, NULL for the first page
--   most     int8    the most workers to return
--
-- Returns a row for each worker of a pod in the roster, in the order of their ids.
\set worker_mark `cat part/worker_mark.sql`
SELECT w.worker_id, :worker_mark AS mark
  FROM :"schema".studio_workers w
 WHERE get_byte(uuid_send(w.worker_id), 0) = ANY (:'buckets'::int4[])
   AND (:'after'::uuid IS NULL OR w.worker_id > :'after'::uuid)
   AND EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = w.owner_incarnation)
 ORDER BY w.worker_id
 LIMIT :'most'::int8;
