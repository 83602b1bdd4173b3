-- Records why a process's own former incarnation ended. It skips a row that another transaction has locked: a cause is
-- not worth a late start.
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
            -- If the incarnation was evicted, or had begun a clean stop, that is how it ended.
            AND o.reason IN ('lost', 'detached')
            -- `closed` and `silent` are causes that other pods saw. The process itself knows more.
            AND (o.cause IS NULL OR o.cause IN ('closed', 'silent') OR o.cause = :'cause'::text)
            FOR NO KEY UPDATE SKIP LOCKED
       )
RETURNING s.incarnation;
