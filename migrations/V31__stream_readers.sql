-- Pods that have readers of a run's stream say so, so that a run whose stream nobody on another pod reads sends no
-- notification. At COMMIT, a transaction that notifies waits for all others in the whole cluster that do, and every
-- session that listens in the database is woken.
--
-- Nothing depends on the rows: readers query once a second anyway. So the table is not logged. After a crash or a
-- failover it is empty, and pods write their rows again when they open their session for streams.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE UNLOGGED TABLE @.studio_stream_readers (
    run_id  uuid        NOT NULL,
    reader  uuid        NOT NULL,
    until   timestamptz,
    PRIMARY KEY (run_id, reader)
);
CREATE INDEX ON @.studio_stream_readers (reader);

COMMENT ON TABLE  @.studio_stream_readers IS 'Who wants to be notified when a run''s stream grows. The pod that executes the run reads it before it notifies. Only a hint: a reader that is missing here reads once a second. Unlogged: empty after a crash or a failover.';
COMMENT ON COLUMN @.studio_stream_readers.run_id IS 'The run.';
COMMENT ON COLUMN @.studio_stream_readers.reader IS 'The incarnation of a pod on which readers are attached. The row counts while this incarnation is in the roster. Of a reader that is no pod: any UUID of its own.';
COMMENT ON COLUMN @.studio_stream_readers.until IS 'Until when the row of a reader that is no pod counts, by the server''s clock; the reader renews it. NULL: the reader is a pod.';

-- Whoever may store chunks may also read, write and delete these rows.
DO $function$
DECLARE
    writer record;
BEGIN
    FOR writer IN
        SELECT DISTINCT CASE WHEN a.grantee = 0::oid THEN 'PUBLIC'::text
                             ELSE pg_catalog.format('%I'::text, pg_catalog.pg_get_userbyid(a.grantee)) END AS name
          FROM pg_catalog.pg_class AS c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS a
         WHERE c.oid = '@.studio_run_chunks'::pg_catalog.regclass AND a.privilege_type = 'INSERT'::text
           AND a.grantee <> c.relowner
    LOOP
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %s'::text,
            '@.studio_stream_readers'::text, writer.name);
    END LOOP;
END $function$;

-- Whoever applies this, the table belongs to the owner of the tables that were there before.
DO $function$
DECLARE
    before text;
BEGIN
    SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) INTO before
      FROM pg_catalog.pg_class AS c
     WHERE c.oid = '@.studio_run_chunks'::pg_catalog.regclass
       AND c.relowner <> (SELECT n.relowner FROM pg_catalog.pg_class AS n
                           WHERE n.oid = '@.studio_stream_readers'::pg_catalog.regclass);
    IF before IS NULL THEN
        RETURN;
    END IF;
    EXECUTE pg_catalog.concat('ALTER TABLE '::text, '@.studio_stream_readers'::text, ' OWNER TO '::text, before);
END $function$;

COMMENT ON FUNCTION @.studio_stream_channel() IS 'The channel on which pods say that runs have new chunks, by groups of runs and not by their ids, if a row of studio_stream_readers asks for it. Nothing depends on it: readers look once a second anyway.';
