-- Evicts a peer, if its event index is still the one at which it was suspected.
--
-- Arguments:
--   peer        uuid  the incarnation of the peer
--   stalled_at  int8  the index at which its beats stopped
--   by_pod      text  the name of the evicting pod
--
-- Returns one row. `ended` is the number of the peer's backends that were ended. It is NULL if the peer was not
-- evicted.
SELECT :"schema".studio_end_backends(:'peer'::uuid, :'stalled_at'::int8, 'stalled'::text, :'by_pod'::text) AS ended;
