-- The key of schema a and pod b/c was that of schema a/b and pod c: both are the hash of a/b/c. A slash in the schema's name
-- now has a backslash before it, and so has a backslash. Then the first slash without one ends the schema's name.
--
-- In a schema without these characters, which is nearly every one, each key stays as it was. In the others a pod of an earlier
-- version and one of the same name of this version would not keep each other out: none may be alive while this is applied.

SET LOCAL search_path = pg_catalog, pg_temp;

DO $function$
DECLARE
    alive bigint;
BEGIN
    IF pg_catalog.strpos('@'::text, '/'::text) = 0 AND pg_catalog.strpos('@'::text, pg_catalog.chr(92)) = 0 THEN
        RETURN;
    END IF;
    SELECT pg_catalog.count(*) INTO alive FROM @.studio_pods AS p WHERE @.studio_holds(p.lock_key, p.liveness_pid);
    IF alive > 0 THEN
        RAISE EXCEPTION 'pods of this schema are alive (%), and their keys change because its name has a slash or a backslash', alive
            USING ERRCODE = 'object_in_use', HINT = 'Stop every pod of this schema, and migrate then.';
    END IF;
END $function$;

CREATE OR REPLACE FUNCTION @.studio_lock_key(pod_id text) RETURNS bigint
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN pg_catalog.hashtextextended(pg_catalog.concat(
        pg_catalog.replace(pg_catalog.replace('@'::text, pg_catalog.chr(92), pg_catalog.repeat(pg_catalog.chr(92), 2)),
            '/'::text, pg_catalog.concat(pg_catalog.chr(92), '/'::text)), '/'::text, pod_id), 0::bigint);

CREATE OR REPLACE FUNCTION @.studio_witness_key(pod_id text) RETURNS bigint
    LANGUAGE sql STABLE STRICT PARALLEL SAFE
    RETURN pg_catalog.hashtextextended(pg_catalog.concat(
        pg_catalog.replace(pg_catalog.replace('@'::text, pg_catalog.chr(92), pg_catalog.repeat(pg_catalog.chr(92), 2)),
            '/'::text, pg_catalog.concat(pg_catalog.chr(92), '/'::text)), '/'::text, pod_id), 1::bigint);
