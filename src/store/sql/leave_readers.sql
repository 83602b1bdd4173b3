-- Deletes the rows of a pod that has no readers of these runs any more.
--
-- Arguments:
--   reader   uuid    the incarnation of the pod
--   run_ids  uuid[]
DELETE FROM :"schema".studio_stream_readers s
 WHERE s.reader = :'reader'::uuid
   AND s.run_id = ANY (:'run_ids'::uuid[]);
