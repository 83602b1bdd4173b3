-- The samples that pods take of themselves: one row for each pod and ten seconds, 8.6 million a day for 1,000 pods. So the table
-- is partitioned by day (UTC). Pods create the partitions ahead, and drop old ones whole: no row is ever deleted.

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

COMMENT ON TABLE  @.studio_pod_heartbeats IS 'Samples: each pod writes one of itself every sample_interval. Partitioned by day, in UTC. Old partitions are dropped whole.';
COMMENT ON COLUMN @.studio_pod_heartbeats.pod_id IS 'The name of the pod.';
COMMENT ON COLUMN @.studio_pod_heartbeats.incarnation IS 'Its registration.';
COMMENT ON COLUMN @.studio_pod_heartbeats.number IS 'The number of the sample, from 1, by this incarnation. A missing number is a sample that was dropped.';
COMMENT ON COLUMN @.studio_pod_heartbeats.sampled_at IS 'When the sample was taken, by the server''s clock: the time of the write, less how long the pod had kept the sample by its own monotonic clock.';
COMMENT ON COLUMN @.studio_pod_heartbeats.status IS 'The phase of the pod: active, cordoned, draining, detached.';
COMMENT ON COLUMN @.studio_pod_heartbeats.health IS 'nominal, fair, serious or critical.';
COMMENT ON COLUMN @.studio_pod_heartbeats.cpu_usage IS 'The processor time that the process used since the sample before, as a share of the processors that it may use: 0 to 1. NULL: unknown.';
COMMENT ON COLUMN @.studio_pod_heartbeats.memory_pressure IS 'The share of the memory that is in use, of the process''s cgroup if that has a limit, else of the host: 0 to 1. NULL: unknown.';
COMMENT ON COLUMN @.studio_pod_heartbeats.memory_available IS 'The bytes of memory that are left, in the cgroup or on the host. NULL: unknown.';
COMMENT ON COLUMN @.studio_pod_heartbeats.running_runs IS 'How many runs the pod was executing.';
COMMENT ON COLUMN @.studio_pod_heartbeats.runtime_lag_ms IS 'How late the application''s runtime woke a timer, in milliseconds: the worst since the sample before. NULL: unknown.';
COMMENT ON COLUMN @.studio_pod_heartbeats.gauges IS 'Numbers of the application''s own, by name. NULL: none.';
COMMENT ON COLUMN @.studio_pod_heartbeats.details IS 'JSON of the application''s own. NULL: none.';
