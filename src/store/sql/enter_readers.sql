-- Records that a pod has readers of these runs. It waits for no append, and no append waits for it.
--
-- Arguments:
--   reader   uuid    the incarnation of the pod
--   run_ids  uuid[]
INSERT INTO :"schema".studio_stream_readers (run_id, reader)
SELECT w.run_id, :'reader'::uuid
  FROM unnest(:'run_ids'::uuid[]) AS w (run_id)
 ORDER BY w.run_id
ON CONFLICT DO NOTHING;
