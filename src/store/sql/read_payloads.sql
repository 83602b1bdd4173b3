-- Reads the inputs and checkpoints of several runs for their owner.
--
-- Arguments:
--   run_ids  uuid[]
--   owners   uuid[]  the owner's incarnation of each
--   fences   int8[]  the fence of each
--
-- Returns a row for each run that is still this owner's under this fence (L5).
SELECT r.run_id, r.input, r.checkpoint
  FROM ROWS FROM (unnest(:'run_ids'::uuid[]), unnest(:'owners'::uuid[]), unnest(:'fences'::int8[]))
       AS w (run_id, incarnation, fence)
  JOIN :"schema".studio_runs r ON r.run_id = w.run_id AND r.owner_incarnation = w.incarnation AND r.fence = w.fence
 WHERE r.state = 'running';
