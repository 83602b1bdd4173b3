-- Records what a process knows of the end of its own former incarnation. It waits for no row that another transaction
-- holds: a cause is not worth a late start.
--
-- Arguments:
--   former  uuid  the former incarnation
--   cause   text  the cause of its end
--   pod     text  the name that both incarnations have
--
-- Returns one row, or none if nothing was recorded.
UPDATE :"schema".studio_pod_sessions s
   SET cause = :'cause'::text
 WHERE s.incarnation IN (
         SELECT o.incarnation
           FROM :"schema".studio_pod_sessions o
          WHERE o.incarnation = :'former'::uuid
            AND o.pod_id = :'pod'::text
            -- An incarnation that was put out, or that had begun a clean stop, ended by that.
            AND o.reason IN ('lost', 'detached')
            -- `closed` and `silent` are what others saw of the end. The process itself knows more.
            AND (o.cause IS NULL OR o.cause IN ('closed', 'silent') OR o.cause = :'cause'::text)
            FOR NO KEY UPDATE SKIP LOCKED
       )
RETURNING s.incarnation;
