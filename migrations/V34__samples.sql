-- The samples that pods take of themselves: one row for each pod and ten seconds, 8.6 million a day for 1,000 pods. So the table
-- is partitioned by day (UTC). Pods create the partitions ahead, and drop old ones whole: no row is ever deleted.
--
-- * No DEFAULT partition. A new partition would scan it, under a lock that stops all readers and writers. A sample whose day
--   has no partition is refused. It stays in its pod's queue, and the pod makes the partition and writes again.
-- * A new partition is made apart and attached: that lock lets readers and writers go on. A drop stops them, so it waits for
--   its lock only 100 ms, and is tried again later.
-- * The partitions are named podlock_heartbeats_YYYYMMDD, without the prefix of the tables that later versions alter.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE TABLE @.studio_pod_heartbeats (
    pod_id           text        NOT NULL,
    incarnation      uuid        NOT NULL,
    number           bigint      NOT NULL,
    sampled_at       timestamptz NOT NULL,
    status           text        NOT NULL,
    health           text        NOT NULL,
    cpu_usage        real,
    memory_pressure  real,
    memory_available bigint,
    running_runs     integer     NOT NULL,
    runtime_lag_ms   real,
    gauges           jsonb,
    details          jsonb
) PARTITION BY RANGE (sampled_at);
CREATE INDEX ON @.studio_pod_heartbeats (pod_id, sampled_at);
-- For the roll-up, which reads an hour of all pods. Rows come nearly in the order of their time, so a BRIN index finds the hour's
-- part of a day. A btree of 8.6 million entries a day would cost each write a page, and take 180 MB a day; this takes 100 KB.
CREATE INDEX ON @.studio_pod_heartbeats USING brin (sampled_at) WITH (autosummarize = on);

COMMENT ON TABLE  @.studio_pod_heartbeats IS 'Samples: each pod writes one of itself every sample_interval. Partitioned by day, in UTC. Old partitions are dropped whole.';
COMMENT ON COLUMN @.studio_pod_heartbeats.pod_id IS 'The name of the pod.';
COMMENT ON COLUMN @.studio_pod_heartbeats.incarnation IS 'Its registration.';
COMMENT ON COLUMN @.studio_pod_heartbeats.number IS 'The number of the sample, from 1, by this incarnation. A missing number is a sample that was dropped.';
COMMENT ON COLUMN @.studio_pod_heartbeats.sampled_at IS 'When the sample was taken, by the server''s clock: when the statement that wrote it arrived, less how long the pod had kept the sample by its own monotonic clock.';
COMMENT ON COLUMN @.studio_pod_heartbeats.status IS 'The phase of the pod: active, cordoned, draining, detached.';
COMMENT ON COLUMN @.studio_pod_heartbeats.health IS 'nominal, fair, serious or critical.';
COMMENT ON COLUMN @.studio_pod_heartbeats.cpu_usage IS 'The processor time that the process used since the sample before, as a share of the processors that it may use: 0 to 1. NULL: unknown.';
COMMENT ON COLUMN @.studio_pod_heartbeats.memory_pressure IS 'The share of the memory that is in use, of the process''s cgroup if that has a limit, else of the host: 0 to 1. NULL: unknown.';
COMMENT ON COLUMN @.studio_pod_heartbeats.memory_available IS 'The bytes of memory that are left, in the cgroup or on the host. NULL: unknown.';
COMMENT ON COLUMN @.studio_pod_heartbeats.running_runs IS 'How many runs the pod was executing.';
COMMENT ON COLUMN @.studio_pod_heartbeats.runtime_lag_ms IS 'How late the application''s runtime woke a timer, in milliseconds: the worst since the sample before. NULL: unknown.';
COMMENT ON COLUMN @.studio_pod_heartbeats.gauges IS 'Numbers of the application''s own, by name. NULL: none.';
COMMENT ON COLUMN @.studio_pod_heartbeats.details IS 'JSON of the application''s own. NULL: none.';

CREATE TABLE @.studio_sample_writers (
    incarnation uuid        NOT NULL,
    number      bigint      NOT NULL,
    before      bigint      NOT NULL,
    wrote_at    timestamptz NOT NULL,
    PRIMARY KEY (incarnation)
) WITH (fillfactor = 50);
COMMENT ON TABLE  @.studio_sample_writers IS 'How far each incarnation has written its samples, so that a write whose answer was lost stores nothing twice. The partitioned table could not tell: its unique keys would have to include sampled_at.';
COMMENT ON COLUMN @.studio_sample_writers.incarnation IS 'The registration of the pod.';
COMMENT ON COLUMN @.studio_sample_writers.number IS 'The number of the last sample that was written. Samples up to it are not written again.';
COMMENT ON COLUMN @.studio_sample_writers.before IS 'The same before the last write.';
COMMENT ON COLUMN @.studio_sample_writers.wrote_at IS 'When it last wrote, by the server''s clock. The row is deleted nine days later, if the incarnation is not in studio_pods.';

CREATE FUNCTION @.studio_add_sample_days(days_back integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
    AS $function$
DECLARE
    today constant date := (pg_catalog.clock_timestamp() AT TIME ZONE 'UTC'::text)::date;
    day date;
    partition text;
    made integer := 0;
BEGIN
    IF days_back IS NULL OR days_back < 0 OR days_back > 8 THEN
        RAISE EXCEPTION 'samples are at most 8 days late' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- This is all that most calls do.
    IF NOT EXISTS (
        SELECT FROM pg_catalog.generate_series(-days_back, 2) AS d
         WHERE pg_catalog.to_regclass(pg_catalog.concat('@.podlock_heartbeats_'::text,
                   pg_catalog.to_char(today + d, 'YYYYMMDD'::text))) IS NULL) THEN
        RETURN 0;
    END IF;
    IF NOT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('@'::text, 12::bigint)) THEN
        RETURN NULL;
    END IF;
    FOR day IN SELECT today + d FROM pg_catalog.generate_series(-days_back, 2) AS d ORDER BY 1 LOOP
        partition := pg_catalog.concat('@.podlock_heartbeats_'::text, pg_catalog.to_char(day, 'YYYYMMDD'::text));
        CONTINUE WHEN pg_catalog.to_regclass(partition) IS NOT NULL;
        BEGIN
            EXECUTE pg_catalog.concat('CREATE TABLE '::text, partition, ' (LIKE '::text,
                '@.studio_pod_heartbeats'::text, ' INCLUDING ALL)'::text);
            EXECUTE pg_catalog.concat('ALTER TABLE '::text, '@.studio_pod_heartbeats'::text, ' ATTACH PARTITION '::text, partition,
                pg_catalog.format(' FOR VALUES FROM (%L) TO (%L)'::text,
                    pg_catalog.concat(day::text, ' 00:00:00+00'::text), pg_catalog.concat((day + 1)::text, ' 00:00:00+00'::text)));
            made := made + 1;
        EXCEPTION
            -- Somebody alters the table: the next call makes it.
            WHEN lock_not_available THEN
                RETURN NULL;
            -- Somebody has made a partition of another name that takes this day.
            WHEN invalid_object_definition THEN
                CONTINUE;
            -- The tables have been given to a role that may make none here, as in a copy of the database.
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'a partition for samples cannot be made: %', SQLERRM USING ERRCODE = 'insufficient_privilege',
                    HINT = pg_catalog.format('GRANT CREATE ON SCHEMA %I TO %I'::text, '@'::text, current_user::text);
        END;
    END LOOP;
    RETURN made;
END $function$;
COMMENT ON FUNCTION @.studio_add_sample_days(integer) IS 'Makes the partitions of studio_pod_heartbeats for today (UTC), the next two days, and so many days back (at most 8). Returns how many were missing and are made; NULL: another transaction makes them, or has locked the table. It waits for nobody longer than 100 ms.';
REVOKE ALL ON FUNCTION @.studio_add_sample_days(integer) FROM PUBLIC;

CREATE FUNCTION @.studio_drop_sample_day(older_than interval, OUT dropped text, OUT kept text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms'
    AS $function$
DECLARE
    spared constant integer := pg_catalog.floor(EXTRACT(EPOCH FROM older_than) / 86400)::integer + 1;
    before constant timestamptz := pg_catalog.clock_timestamp() - older_than;
    candidate record;
BEGIN
    IF older_than IS NULL OR older_than < interval '1 hour' THEN
        RAISE EXCEPTION 'nothing younger than an hour is dropped' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    BEGIN
    FOR candidate IN
        SELECT d.relation::text AS name
          FROM (SELECT c.oid::regclass AS relation, pg_catalog.to_date(pg_catalog.right(c.relname::text, 8), 'YYYYMMDD'::text) AS day,
                       pg_catalog.pg_relation_size(c.oid::regclass) > 0 AS has_rows,
                       -- How many newer days have samples.
                       pg_catalog.count(*) FILTER (WHERE pg_catalog.pg_relation_size(c.oid::regclass) > 0) OVER (
                           ORDER BY c.relname DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS newer
                  FROM pg_catalog.pg_inherits AS i
                  JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
                 WHERE i.inhparent = '@.studio_pod_heartbeats'::regclass
                   AND c.relname::text ~ '^podlock_heartbeats_[0-9]{8}$'::text) AS d
         WHERE (d.day + 1)::timestamp AT TIME ZONE 'UTC'::text <= before
           -- The server's clock may be wrong. Whatever it says, as many days with samples stay as are to be kept.
           AND (NOT d.has_rows OR d.newer >= spared)
         ORDER BY d.day
    LOOP
        IF NOT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('@'::text, 12::bigint)) THEN
            RETURN;
        END IF;
        -- Another transaction has dropped it since this statement began.
        CONTINUE WHEN pg_catalog.to_regclass(candidate.name) IS NULL;
        BEGIN
            EXECUTE pg_catalog.concat('DROP TABLE '::text, candidate.name);
            dropped := candidate.name;
            RETURN;
        EXCEPTION
            -- An object of the service's own needs this day. It stays, and the next is tried.
            WHEN dependent_objects_still_exist THEN
                kept := COALESCE(kept, candidate.name);
        END;
    END LOOP;
    EXCEPTION
        -- Somebody reads or writes samples for long: the next round drops it.
        WHEN lock_not_available THEN
            RETURN;
    END;
END $function$;
COMMENT ON FUNCTION @.studio_drop_sample_day(interval) IS 'Drops the oldest partition of studio_pod_heartbeats whose samples are all older than that, which is at least an hour. Of the days with samples, at least as many as fit into that time stay, and one more, whatever the clock says. Returns its name, and that of an older one that stays because an object of the service''s own depends on it. Without a name nothing was dropped: nothing is old, another transaction is at it, or somebody reads or writes for longer than the 100 ms that it waits.';
REVOKE ALL ON FUNCTION @.studio_drop_sample_day(interval) FROM PUBLIC;

-- Whoever may register a pod may also write samples.
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
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT ON %s TO %s'::text, '@.studio_pod_heartbeats'::text, writer.name);
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %s'::text,
            '@.studio_sample_writers'::text, writer.name);
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s, %s TO %s'::text,
            '@.studio_add_sample_days(integer)'::text, '@.studio_drop_sample_day(interval)'::text, writer.name);
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
                           WHERE n.oid = '@.studio_pod_heartbeats'::pg_catalog.regclass);
    IF before IS NULL THEN
        RETURN;
    END IF;
    EXECUTE pg_catalog.concat('ALTER TABLE '::text, '@.studio_pod_heartbeats'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER TABLE '::text, '@.studio_sample_writers'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER FUNCTION '::text, '@.studio_add_sample_days(integer)'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER FUNCTION '::text, '@.studio_drop_sample_day(interval)'::text, ' OWNER TO '::text, before);
END $function$;
