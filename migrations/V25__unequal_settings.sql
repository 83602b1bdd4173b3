-- A row of the roster says what others must know of its pod's settings, so that pods of different leases can live together.
--
-- An observer waits for a pod as long as that pod's runs may go on, and not only as long as its own settings say.

SET LOCAL search_path = pg_catalog, pg_temp;

ALTER TABLE @.studio_pods
    ADD COLUMN lease_ms pg_catalog.int4,
    ADD COLUMN self_fence_ms pg_catalog.int4,
    ADD CONSTRAINT studio_pods_settings_check
        CHECK (lease_ms OPERATOR(pg_catalog.>=) 2000::pg_catalog.int4 AND lease_ms OPERATOR(pg_catalog.<=) 3600000::pg_catalog.int4
           AND self_fence_ms OPERATOR(pg_catalog.>) 0::pg_catalog.int4 AND self_fence_ms OPERATOR(pg_catalog.<) lease_ms);

COMMENT ON COLUMN @.studio_pods.lease_ms IS 'How long the server lets its silent liveness session live, in milliseconds. NULL: not known, for it is of a version that does not say so.';
COMMENT ON COLUMN @.studio_pods.self_fence_ms IS 'When it tells its runs to stop, in milliseconds from its last answered ping. Others bury it no sooner than this and a tenth of its lease after it lost its sessions, unless its process is gone. NULL: not known.';
