-- Deletes what no pod needs any more: workers of pods that are gone, the entries of such pods, and tombstones that every
-- living pod of the registry has read past. A tombstone's age does not count: a pod that slept must not bring a worker
-- back.
--
-- Arguments:
--   most  int8  the most rows of each kind
--
-- Returns one row: how many of each were deleted.
WITH
  ownerless AS MATERIALIZED (
    SELECT w.worker_id, w.owner_incarnation
      FROM :"schema".studio_workers w
     WHERE NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = w.owner_incarnation)
     ORDER BY w.worker_id
     LIMIT :'most'::int8
       FOR UPDATE OF w SKIP LOCKED
  ),
  workers AS (
    DELETE FROM :"schema".studio_workers w
     USING ownerless o
     WHERE w.worker_id = o.worker_id
       -- An incarnation never comes back. But the row may have got another owner after this statement's snapshot.
       AND w.owner_incarnation = o.owner_incarnation
    RETURNING w.worker_id
  ),
  left_pods AS MATERIALIZED (
    SELECT r.incarnation
      FROM :"schema".studio_worker_pods r
     WHERE NOT EXISTS (SELECT FROM :"schema".studio_pods p WHERE p.incarnation = r.incarnation)
     ORDER BY r.incarnation
     LIMIT :'most'::int8
       FOR UPDATE OF r SKIP LOCKED
  ),
  pods AS (
    DELETE FROM :"schema".studio_worker_pods r
     USING left_pods l
     WHERE r.incarnation = l.incarnation
    RETURNING r.incarnation
  ),
  past AS MATERIALIZED (
    SELECT t.removed_in, t.worker_id
      FROM :"schema".studio_worker_tombstones t
           -- From a dump of another server, and so older than any read here.
     WHERE t.removed_in >= pg_snapshot_xmax(pg_current_snapshot())
        OR NOT EXISTS (SELECT FROM :"schema".studio_worker_pods r
                         JOIN :"schema".studio_pods p ON p.incarnation = r.incarnation
                        -- A pod that has read nothing yet has NULL.
                        WHERE pg_visible_in_snapshot(t.removed_in, r.read_to) IS NOT TRUE)
     ORDER BY t.removed_in, t.worker_id
     LIMIT :'most'::int8
       FOR UPDATE OF t SKIP LOCKED
  ),
  tombstones AS (
    DELETE FROM :"schema".studio_worker_tombstones t
     USING past
     WHERE t.removed_in = past.removed_in
       AND t.worker_id = past.worker_id
    RETURNING t.worker_id
  )
SELECT (SELECT count(*) FROM workers) AS workers,
       (SELECT count(*) FROM pods) AS pods,
       (SELECT count(*) FROM tombstones) AS tombstones;
