-- The worker registry: what one pod registers, every pod sees. A worker belongs to the pod that registered it. Only that
-- pod writes its row, except for the column liveness. Each pod that uses the registry keeps a copy of all rows in memory.
--
-- * How a pod finds what changed. Each row says in which transaction it was last written. A pod keeps the snapshot of its last
--   read, and the next read returns the rows whose transaction was not visible in that snapshot. So no row is missed, in whatever
--   order transactions commit, and no clock and no sequence is asked.
-- * How a removal is seen. A trigger writes a tombstone for each deleted row. It is deleted once every living pod that uses the
--   registry has read past it.
-- * How a worker stays active. The owner does not write each row each time: one row for each pod says that all workers of this pod
--   were probed, except those that it names.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE TABLE @.studio_workers (
    worker_id         uuid        NOT NULL,
    url               text        NOT NULL,
    owner_pod         text        NOT NULL,
    owner_incarnation uuid        NOT NULL,
    health            text        NOT NULL,
    liveness          text        NOT NULL DEFAULT 'inactive',
    reported_at       timestamptz,
    spec              jsonb       NOT NULL,
    health_check      jsonb,
    since_report      bigint      NOT NULL DEFAULT 0,
    changed_in        xid8        NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (worker_id),
    CONSTRAINT studio_workers_health_check CHECK (health IN ('pending', 'not_ready', 'ready', 'failed', 'draining')),
    CONSTRAINT studio_workers_liveness_check CHECK (liveness IN ('active', 'inactive'))
) WITH (toast_tuple_target = 256);
CREATE INDEX ON @.studio_workers (changed_in, worker_id);
CREATE INDEX ON @.studio_workers (owner_incarnation, worker_id);
-- For the check of a pod's copy: it reads these three columns of all rows, and not the rows.
CREATE INDEX ON @.studio_workers (worker_id, changed_in, owner_incarnation);

COMMENT ON TABLE  @.studio_workers IS 'The workers of the fleet: one row for each, written by the pod that registered it. A row counts while its owner_incarnation is in studio_pods. studio_worker_status shows the rows that count, with later reports.';
COMMENT ON COLUMN @.studio_workers.worker_id IS 'The worker: a UUIDv5 of its pod''s name and its URL, so a restart of the pod keeps it.';
COMMENT ON COLUMN @.studio_workers.url IS 'Where the worker is.';
COMMENT ON COLUMN @.studio_workers.owner_pod IS 'The name of the pod that registered it.';
COMMENT ON COLUMN @.studio_workers.owner_incarnation IS 'The registration of that pod. Only this incarnation writes the row, except for liveness.';
COMMENT ON COLUMN @.studio_workers.health IS 'As the owner''s probe sees it: pending (not probed yet), ready, not_ready (it failed some probes in a row), failed (it failed many), draining (it finishes what it has and gets nothing new).';
COMMENT ON COLUMN @.studio_workers.liveness IS 'active, or inactive: the owner has never reported the worker, or not for a while. The owner''s first report makes it active; from then on only the monitor writes this column.';
COMMENT ON COLUMN @.studio_workers.reported_at IS 'When the owner last reported this worker in this row, by the server''s clock. NULL: never. Reports of all workers of a pod are in studio_worker_pods; studio_worker_status shows the later one. For people only.';
COMMENT ON COLUMN @.studio_workers.spec IS 'What the pod says of the worker: kind, model, labels, weight, capacity, and what the service adds. Without its secrets.';
COMMENT ON COLUMN @.studio_workers.health_check IS 'How the worker is probed. NULL: it is not probed.';
COMMENT ON COLUMN @.studio_workers.since_report IS 'The owner''s report, by its number in studio_worker_pods, after which this row was written. Later reports include the worker, unless they name it as not probed.';
COMMENT ON COLUMN @.studio_workers.changed_in IS 'The transaction that last wrote the row.';

CREATE TABLE @.studio_worker_tombstones (
    worker_id  uuid NOT NULL,
    removed_in xid8 NOT NULL,
    PRIMARY KEY (removed_in, worker_id)
);
COMMENT ON TABLE  @.studio_worker_tombstones IS 'Workers that were removed, one row for each removal, until every living pod that uses the registry has read past it. A row in studio_workers with the same id is newer and counts. Rows are only added and deleted, so a removal waits for nobody who has locked an earlier one.';
COMMENT ON COLUMN @.studio_worker_tombstones.worker_id IS 'The worker.';
COMMENT ON COLUMN @.studio_worker_tombstones.removed_in IS 'The transaction that removed it.';

CREATE TABLE @.studio_worker_pods (
    incarnation uuid        NOT NULL,
    published   bigint      NOT NULL DEFAULT 0,
    report      bigint      NOT NULL DEFAULT 0,
    reported_at timestamptz,
    report_ms   integer,
    unprobed    uuid[]      NOT NULL DEFAULT '{}',
    read_to     pg_snapshot,
    PRIMARY KEY (incarnation)
) WITH (fillfactor = 50);
COMMENT ON TABLE  @.studio_worker_pods IS 'The pods that use the worker registry: what they reported, and how far they have read.';
COMMENT ON COLUMN @.studio_worker_pods.incarnation IS 'The pod. The row counts while this incarnation is in studio_pods.';
COMMENT ON COLUMN @.studio_worker_pods.published IS 'The number of the pod''s last write of workers. A write with a lower number comes too late and changes nothing.';
COMMENT ON COLUMN @.studio_worker_pods.report IS 'How often the pod has reported its workers.';
COMMENT ON COLUMN @.studio_worker_pods.reported_at IS 'When it last did, by the server''s clock. For people only.';
COMMENT ON COLUMN @.studio_worker_pods.report_ms IS 'How often it does, in milliseconds. NULL: unknown. An observer that looks more often waits for it.';
COMMENT ON COLUMN @.studio_worker_pods.unprobed IS 'Its workers that the last report does not include, because they were not probed.';
COMMENT ON COLUMN @.studio_worker_pods.read_to IS 'The snapshot of its last read, as its last report said it. NULL: the pod has read nothing yet.';

CREATE TABLE @.studio_worker_monitor (
    single      boolean NOT NULL DEFAULT true,
    incarnation uuid,
    looks       bigint  NOT NULL DEFAULT 0,
    PRIMARY KEY (single),
    CONSTRAINT studio_worker_monitor_single_check CHECK (single)
);
INSERT INTO @.studio_worker_monitor DEFAULT VALUES;
COMMENT ON TABLE  @.studio_worker_monitor IS 'Which pod looks after the liveness of workers. One row. Another pod takes over if this one is not in studio_pods, or if looks stands still.';
COMMENT ON COLUMN @.studio_worker_monitor.single IS 'True.';
COMMENT ON COLUMN @.studio_worker_monitor.incarnation IS 'The pod.';
COMMENT ON COLUMN @.studio_worker_monitor.looks IS 'The number of the monitor''s rounds so far. If it does not grow, the monitor stands still.';

CREATE FUNCTION @.studio_note_changed_worker() RETURNS trigger
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
BEGIN
    NEW.changed_in := pg_current_xact_id();
    RETURN NEW;
END $function$;
COMMENT ON FUNCTION @.studio_note_changed_worker() IS 'Records which transaction wrote a row of studio_workers, whoever writes it.';
CREATE TRIGGER note_changed BEFORE UPDATE ON @.studio_workers
    FOR EACH ROW EXECUTE FUNCTION @.studio_note_changed_worker();

CREATE FUNCTION @.studio_note_removed_workers() RETURNS trigger
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
BEGIN
    INSERT INTO @.studio_worker_tombstones AS t (worker_id, removed_in)
    SELECT r.worker_id, pg_current_xact_id() FROM removed AS r
        -- The same transaction has removed the worker before.
        ON CONFLICT (removed_in, worker_id) DO NOTHING;
    RETURN NULL;
END $function$;
COMMENT ON FUNCTION @.studio_note_removed_workers() IS 'Writes a tombstone for each deleted row of studio_workers, whoever deletes it.';
CREATE TRIGGER note_removed AFTER DELETE ON @.studio_workers
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION @.studio_note_removed_workers();

CREATE VIEW @.studio_worker_status AS
SELECT w.worker_id, w.url, w.owner_pod, w.owner_incarnation, w.health, w.liveness,
       CASE WHEN r.report > w.since_report AND w.worker_id <> ALL (r.unprobed) THEN r.reported_at
            ELSE w.reported_at END AS reported_at,
       w.spec, w.health_check
  FROM @.studio_workers AS w
  JOIN @.studio_pods AS p ON p.incarnation = w.owner_incarnation
  LEFT JOIN @.studio_worker_pods AS r ON r.incarnation = w.owner_incarnation;
COMMENT ON VIEW @.studio_worker_status IS 'The workers of the pods in the roster, with the last report of each.';
COMMENT ON COLUMN @.studio_worker_status.worker_id IS 'As in studio_workers.';
COMMENT ON COLUMN @.studio_worker_status.url IS 'As in studio_workers.';
COMMENT ON COLUMN @.studio_worker_status.owner_pod IS 'As in studio_workers.';
COMMENT ON COLUMN @.studio_worker_status.owner_incarnation IS 'As in studio_workers.';
COMMENT ON COLUMN @.studio_worker_status.health IS 'As in studio_workers.';
COMMENT ON COLUMN @.studio_worker_status.liveness IS 'As in studio_workers.';
COMMENT ON COLUMN @.studio_worker_status.reported_at IS 'When the owner last reported the worker, by the server''s clock. NULL: never.';
COMMENT ON COLUMN @.studio_worker_status.spec IS 'As in studio_workers.';
COMMENT ON COLUMN @.studio_worker_status.health_check IS 'As in studio_workers.';

-- Whoever may register a pod may also register workers, and whoever may delete a pod's row may also delete its workers.
DO $function$
DECLARE
    writer record;
BEGIN
    FOR writer IN
        SELECT DISTINCT CASE WHEN a.grantee = 0::oid THEN 'PUBLIC'::text
                             ELSE pg_catalog.format('%I'::text, pg_catalog.pg_get_userbyid(a.grantee)) END AS name
          FROM pg_catalog.pg_class AS c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS a
         WHERE c.oid = '@.studio_pods'::pg_catalog.regclass AND a.privilege_type = 'INSERT'::text
           AND a.grantee <> c.relowner
    LOOP
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s, %s, %s, %s TO %s'::text,
            '@.studio_workers'::text, '@.studio_worker_tombstones'::text, '@.studio_worker_pods'::text,
            '@.studio_worker_monitor'::text, writer.name);
        EXECUTE pg_catalog.format('GRANT SELECT ON %s TO %s'::text, '@.studio_worker_status'::text, writer.name);
    END LOOP;
END $function$;

-- Whoever applies this, the objects belong to the owner of the tables that were there before.
DO $function$
DECLARE
    before text;
BEGIN
    SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) INTO before
      FROM pg_catalog.pg_class AS c
     WHERE c.oid = '@.studio_pods'::pg_catalog.regclass
       AND c.relowner <> (SELECT n.relowner FROM pg_catalog.pg_class AS n
                           WHERE n.oid = '@.studio_workers'::pg_catalog.regclass);
    IF before IS NULL THEN
        RETURN;
    END IF;
    EXECUTE pg_catalog.concat('ALTER TABLE '::text, '@.studio_workers'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER TABLE '::text, '@.studio_worker_tombstones'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER TABLE '::text, '@.studio_worker_pods'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER TABLE '::text, '@.studio_worker_monitor'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER VIEW '::text, '@.studio_worker_status'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER FUNCTION '::text, '@.studio_note_changed_worker()'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER FUNCTION '::text, '@.studio_note_removed_workers()'::text, ' OWNER TO '::text, before);
END $function$;

-- Last, for it locks the log until the end of this transaction.
ALTER TABLE @.studio_pod_events DROP CONSTRAINT studio_pod_events_kind_check,
    ADD CONSTRAINT studio_pod_events_kind_check CHECK (kind IN
        ('joined', 'draining', 'detached', 'returned', 'suspected', 'evicted', 'buried', 'claimed', 'quarantined', 'snapshot',
         'held', 'run_failed', 'foreign_lock', 'cordoned', 'uncordoned', 'workers_inactive', 'workers_active'));

COMMENT ON COLUMN @.studio_pod_events.kind IS 'joined, draining, detached, returned, suspected, evicted, buried, claimed, quarantined; cordoned, uncordoned: an operator did so; held: its lock is free and it is not buried yet, why and for how long; run_failed: runs of a kind failed on a pod; foreign_lock: a backend that is no pod''s holds or wants a lock of the pod; workers_inactive: workers of the pod were not reported for a while; workers_active: they were reported again; snapshot: the roster as it was after this position, in place of all events up to it.';
