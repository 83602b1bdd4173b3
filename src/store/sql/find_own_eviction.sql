-- Finds whether an incarnation was evicted. It may have been buried since.
--
-- Arguments:
--   own        uuid    the incarnation
--   evictions  text[]  the reasons that are evictions
--
-- Returns one row.
SELECT EXISTS (SELECT FROM :"schema".studio_pods p
                WHERE p.incarnation = :'own'::uuid
                  AND p.evicted IS NOT NULL)
    OR EXISTS (SELECT FROM :"schema".studio_pod_sessions s
                WHERE s.incarnation = :'own'::uuid
                  AND s.reason = ANY (:'evictions'::text[])) AS evicted;
