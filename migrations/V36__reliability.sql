-- What is made from samples and sessions: hourly rows of each pod, and how reliable each pod was.

SET LOCAL search_path = pg_catalog, pg_temp;

CREATE TABLE @.studio_pod_heartbeats_hourly (
    pod_id               text        NOT NULL,
    hour                 timestamptz NOT NULL,
    heartbeat_count      bigint      NOT NULL,
    avg_memory_pressure  double precision,
    avg_cpu_usage        double precision,
    max_health           text        NOT NULL,
    avg_memory_available double precision,
    PRIMARY KEY (pod_id, hour)
);
COMMENT ON TABLE  @.studio_pod_heartbeats_hourly IS 'One row for each pod and whole hour (UTC) with samples. It stays after the samples are dropped.';
COMMENT ON COLUMN @.studio_pod_heartbeats_hourly.pod_id IS 'The name of the pod.';
COMMENT ON COLUMN @.studio_pod_heartbeats_hourly.hour IS 'When the hour begins.';
COMMENT ON COLUMN @.studio_pod_heartbeats_hourly.heartbeat_count IS 'How many samples there were.';
COMMENT ON COLUMN @.studio_pod_heartbeats_hourly.avg_memory_pressure IS 'The mean of memory_pressure. NULL: no sample knew it.';
COMMENT ON COLUMN @.studio_pod_heartbeats_hourly.avg_cpu_usage IS 'The mean of cpu_usage. NULL: no sample knew it.';
COMMENT ON COLUMN @.studio_pod_heartbeats_hourly.max_health IS 'The worst health: nominal, fair, serious or critical, in this order.';
COMMENT ON COLUMN @.studio_pod_heartbeats_hourly.avg_memory_available IS 'The mean of memory_available, in bytes. NULL: no sample knew it.';

CREATE TABLE @.studio_pod_reliability (
    pod_id                 text             NOT NULL,
    updated_at             timestamptz      NOT NULL DEFAULT now(),
    window_days            integer          NOT NULL,
    uptime_pct             double precision,
    sessions_count         bigint           NOT NULL,
    mtbf_seconds           double precision,
    p10_session_seconds    double precision,
    median_session_seconds double precision,
    p90_session_seconds    double precision,
    hourly_availability    jsonb,
    disconnect_reasons     jsonb            NOT NULL DEFAULT '{}',
    p_stays_4h             double precision,
    p_stays_8h             double precision,
    last_disconnect_at     timestamptz,
    last_session_seconds   double precision,
    score                  double precision NOT NULL,
    PRIMARY KEY (pod_id)
);
CREATE INDEX ON @.studio_pod_reliability (score DESC, uptime_pct DESC, pod_id);
COMMENT ON TABLE  @.studio_pod_reliability IS 'How reliable each pod was in the last days, from its sessions. One row for each name of a pod, or for each value of the label that score_by names.';
COMMENT ON COLUMN @.studio_pod_reliability.pod_id IS 'The name of the pod, or the value of the label.';
COMMENT ON COLUMN @.studio_pod_reliability.updated_at IS 'When the row was made, by the server''s clock.';
COMMENT ON COLUMN @.studio_pod_reliability.window_days IS 'How many days it looks back.';
COMMENT ON COLUMN @.studio_pod_reliability.uptime_pct IS 'Covered time by the time since the later of the begin of the window and the first session: 0 to 100. NULL: unknown.';
COMMENT ON COLUMN @.studio_pod_reliability.sessions_count IS 'How many sessions reach into the window.';
COMMENT ON COLUMN @.studio_pod_reliability.mtbf_seconds IS 'The mean time between failures: covered time by the number of unclean ends, or the covered time if there was none.';
COMMENT ON COLUMN @.studio_pod_reliability.p10_session_seconds IS 'A tenth of the sessions were shorter.';
COMMENT ON COLUMN @.studio_pod_reliability.median_session_seconds IS 'Half of the sessions were shorter.';
COMMENT ON COLUMN @.studio_pod_reliability.p90_session_seconds IS 'Nine tenths of the sessions were shorter.';
COMMENT ON COLUMN @.studio_pod_reliability.hourly_availability IS 'An array of 7 arrays, Monday first, of 24 shares: which part of this hour of the week (UTC) was covered. NULL in an hour without data.';
COMMENT ON COLUMN @.studio_pod_reliability.disconnect_reasons IS 'How many sessions ended for each reason, by name.';
COMMENT ON COLUMN @.studio_pod_reliability.p_stays_4h IS 'The share of the sessions that lasted four hours. NULL: none can tell yet.';
COMMENT ON COLUMN @.studio_pod_reliability.p_stays_8h IS 'The share of the sessions that lasted eight hours. NULL: none can tell yet.';
COMMENT ON COLUMN @.studio_pod_reliability.last_disconnect_at IS 'When a session last ended. NULL: none has.';
COMMENT ON COLUMN @.studio_pod_reliability.last_session_seconds IS 'How long the newest session has lasted.';
COMMENT ON COLUMN @.studio_pod_reliability.score IS '0 (do not trust it with a long run) to 1.';
