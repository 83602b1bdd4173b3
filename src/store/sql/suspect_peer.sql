-- Records that a peer is suspected, once for each index at which its beats stopped.
--
-- Arguments:
--   peer        uuid  the incarnation of the peer
--   stalled_at  int8  the index at which its beats stopped
--   by_pod      text  the name of the pod that suspects it
--   looks       int4  how many of that pod's checks showed the same index
--
-- Returns one row. `suspected` is false if another pod recorded it, or if the peer's index changed.
SELECT :"schema".studio_suspect(:'peer'::uuid, :'stalled_at'::int8, :'by_pod'::text, :'looks'::int4) AS suspected;
