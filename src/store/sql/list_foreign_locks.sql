-- Lists sessions that hold or want a pod's lock but do not belong to a pod. Lists at most four for each key, so that
-- one key with many strangers hides none of the others (L12).
--
-- Returns at most 256 rows of `studio_foreign_locks`, the first stranger of each key before the second.
SELECT n.pod_id, n.incarnation, n.key, n.granted, n.pid, n.role, n.application, n.address, n.prepared, n.who
  FROM (SELECT f.*,
               row_number() OVER (PARTITION BY f.incarnation, f.key ORDER BY f.granted DESC, f.pid) AS nth
          FROM :"schema".studio_foreign_locks f) n
 WHERE n.nth <= 4
 ORDER BY n.nth, n.pod_id, n.key
 LIMIT 256;
