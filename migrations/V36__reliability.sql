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
-- For retention, and for what is read of all pods by the hour.
CREATE INDEX ON @.studio_pod_heartbeats_hourly (hour);
-- For the roll-up, which reads an hour of all pods. Samples arrive in the order of their time, so a few pages hold an hour, and
-- this index costs an insert nothing. Pages that it does not know yet are the newest ones.
CREATE INDEX ON @.studio_pod_heartbeats USING brin (sampled_at) WITH (pages_per_range = 32, autosummarize = on);
COMMENT ON TABLE  @.studio_pod_heartbeats_hourly IS 'One row for each pod and whole hour (UTC) with samples. Only hours that are over have rows. They stay for 400 days, longer than the samples.';
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
-- The order of the list by score: src/store/sql/list_reliability.sql. Of equal scores, an unknown uptime comes last.
CREATE INDEX ON @.studio_pod_reliability (score DESC, (COALESCE(uptime_pct, -1::double precision)) DESC, pod_id);
COMMENT ON TABLE  @.studio_pod_reliability IS 'How reliable each pod was in the last days, from its sessions. One row for each name of a pod, or for each value of the label that score_by names.';
COMMENT ON COLUMN @.studio_pod_reliability.pod_id IS 'The name of the pod, or the value of the label.';
COMMENT ON COLUMN @.studio_pod_reliability.updated_at IS 'When the row was made, by the server''s clock.';
COMMENT ON COLUMN @.studio_pod_reliability.window_days IS 'How many days it looks back.';
COMMENT ON COLUMN @.studio_pod_reliability.uptime_pct IS 'Covered time by the time since the later of the begin of the window and the first session: 0 to 100. Time that several sessions cover counts once. NULL: no time has passed yet.';
COMMENT ON COLUMN @.studio_pod_reliability.sessions_count IS 'How many sessions reach into the window.';
COMMENT ON COLUMN @.studio_pod_reliability.mtbf_seconds IS 'The mean time between failures: covered time by the number of unclean ends, or the covered time if there was none. An end is clean if its reason is shutdown.';
COMMENT ON COLUMN @.studio_pod_reliability.p10_session_seconds IS 'A tenth of the sessions were shorter. A session counts whole, also the part before the window; an open one, up to now.';
COMMENT ON COLUMN @.studio_pod_reliability.median_session_seconds IS 'Half of the sessions were shorter.';
COMMENT ON COLUMN @.studio_pod_reliability.p90_session_seconds IS 'Nine tenths of the sessions were shorter.';
COMMENT ON COLUMN @.studio_pod_reliability.hourly_availability IS 'An array of 7 arrays, Monday first, of 24 shares: which part of this hour of the week (UTC) was covered. NULL in an hour without data.';
COMMENT ON COLUMN @.studio_pod_reliability.disconnect_reasons IS 'How many sessions ended in the window for each reason, by name.';
COMMENT ON COLUMN @.studio_pod_reliability.p_stays_4h IS 'The share of the sessions that lasted four hours: 0 to 1. A session that is younger and open, or that ended earlier by a clean shutdown, says nothing. NULL: no session says anything.';
COMMENT ON COLUMN @.studio_pod_reliability.p_stays_8h IS 'The same for eight hours.';
COMMENT ON COLUMN @.studio_pod_reliability.last_disconnect_at IS 'When a session last ended. NULL: none has.';
COMMENT ON COLUMN @.studio_pod_reliability.last_session_seconds IS 'How long the newest session has lasted.';
COMMENT ON COLUMN @.studio_pod_reliability.score IS '0 (do not trust it with a long run) to 1 (do). docs/history.md has the formula.';

CREATE TABLE @.studio_roll_ups (
    what       text        NOT NULL,
    done_at    timestamptz,
    upto       timestamptz,
    token      uuid,
    claimed_by text,
    claimed_at timestamptz,
    slice      integer,
    slices     integer,
    score_by   text        NOT NULL DEFAULT '',
    PRIMARY KEY (what),
    CONSTRAINT studio_roll_ups_what_check CHECK (what IN ('hourly', 'reliability'))
);
INSERT INTO @.studio_roll_ups (what) VALUES ('hourly'), ('reliability');
COMMENT ON TABLE  @.studio_roll_ups IS 'The roll-ups: when each was last done, who is at it, and how far it has got. Two rows.';
COMMENT ON COLUMN @.studio_roll_ups.what IS 'hourly: studio_pod_heartbeats_hourly. reliability: studio_pod_reliability.';
COMMENT ON COLUMN @.studio_roll_ups.done_at IS 'When it was last complete, by the server''s clock. NULL: never. A time in the future comes from a clock that has jumped, and counts as never.';
COMMENT ON COLUMN @.studio_roll_ups.upto IS 'hourly: all hours before this one have their rows. NULL: none has.';
COMMENT ON COLUMN @.studio_roll_ups.token IS 'Who is at it: a write with another token changes nothing. NULL: nobody is.';
COMMENT ON COLUMN @.studio_roll_ups.claimed_by IS 'The name of the pod that is or was last at it. NULL: an operator. For people.';
COMMENT ON COLUMN @.studio_roll_ups.claimed_at IS 'Its last sign of life, by the server''s clock. Another may continue a minute later.';
COMMENT ON COLUMN @.studio_roll_ups.slice IS 'reliability: how many slices of the pods are done. NULL: none is.';
COMMENT ON COLUMN @.studio_roll_ups.slices IS 'reliability: into how many slices the pods are divided, so that each fits into memory. NULL: not known yet.';
COMMENT ON COLUMN @.studio_roll_ups.score_by IS 'The label that the scores were last made by. Empty: by the name of the pod.';

CREATE FUNCTION @.studio_prune_hours(older_than interval, most integer) RETURNS integer
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '20ms'
    AS $function$
DECLARE
    gone integer;
BEGIN
    IF older_than IS NULL OR older_than < '1 hour'::interval THEN
        RAISE EXCEPTION 'rows of the last hour are not deleted' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    DELETE FROM @.studio_pod_heartbeats_hourly AS h USING (
        SELECT o.pod_id, o.hour FROM @.studio_pod_heartbeats_hourly AS o
         WHERE o.hour < pg_catalog.now() - older_than
         ORDER BY o.hour LIMIT most FOR UPDATE SKIP LOCKED) AS o
     WHERE h.pod_id = o.pod_id AND h.hour = o.hour;
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END $function$;
COMMENT ON FUNCTION @.studio_prune_hours(interval, integer) IS 'Deletes at most so many hourly rows that are older than that, the oldest first. Returns how many. Passes over rows that are locked, and refuses to delete those of the last hour.';

CREATE VIEW @.studio_pod_history AS
SELECT s.pod_id,
       s.began_at,
       CASE WHEN s.ended_at IS NULL AND p.incarnation IS NULL THEN COALESCE(s.last_heartbeat_at, s.began_at)
            ELSE s.ended_at END AS ended_at,
       GREATEST(0, EXTRACT(epoch FROM COALESCE(s.ended_at,
           CASE WHEN p.incarnation IS NULL THEN COALESCE(s.last_heartbeat_at, s.began_at) ELSE now() END) - s.began_at)
       )::double precision AS seconds,
       s.reason,
       s.cause,
       s.buried_by,
       s.exit_code,
       s.exit_signal,
       s.last_heartbeat_at,
       s.runs_served,
       (SELECT count(*) FROM @.studio_run_attempts AS a
          JOIN @.studio_run_attempts AS n ON n.run_id = a.run_id AND n.attempt = a.attempt + 1
         WHERE a.incarnation = s.incarnation AND n.incarnation <> s.incarnation) AS runs_taken_over,
       (SELECT array_agg(DISTINCT n.pod_id ORDER BY n.pod_id) FROM @.studio_run_attempts AS a
          JOIN @.studio_run_attempts AS n ON n.run_id = a.run_id AND n.attempt = a.attempt + 1
         WHERE a.incarnation = s.incarnation AND n.incarnation <> s.incarnation) AS taken_over_by,
       (SELECT r.score FROM @.studio_pod_reliability AS r
         WHERE r.pod_id = COALESCE(NULLIF(left(s.labels ->> (
             SELECT NULLIF(u.score_by, '') FROM @.studio_roll_ups AS u WHERE u.what = 'reliability'), 512), ''), s.pod_id)) AS score,
       s.incarnation,
       s.labels
  FROM @.studio_pod_sessions AS s
  LEFT JOIN @.studio_pods AS p ON p.incarnation = s.incarnation;
COMMENT ON VIEW   @.studio_pod_history IS 'The life of each incarnation, in one row: start here to see who died last night, of what, and who took over.';
COMMENT ON COLUMN @.studio_pod_history.pod_id IS 'The name of the pod.';
COMMENT ON COLUMN @.studio_pod_history.began_at IS 'When it registered.';
COMMENT ON COLUMN @.studio_pod_history.ended_at IS 'When it ended. NULL: it is in the roster. If nobody recorded the end, when it last wrote samples.';
COMMENT ON COLUMN @.studio_pod_history.seconds IS 'How long it lasted, or has lasted.';
COMMENT ON COLUMN @.studio_pod_history.reason IS 'As in studio_pod_sessions. NULL: it has not ended, or nobody recorded the end.';
COMMENT ON COLUMN @.studio_pod_history.cause IS 'As in studio_pod_sessions.';
COMMENT ON COLUMN @.studio_pod_history.buried_by IS 'As in studio_pod_sessions.';
COMMENT ON COLUMN @.studio_pod_history.exit_code IS 'As in studio_pod_sessions.';
COMMENT ON COLUMN @.studio_pod_history.exit_signal IS 'As in studio_pod_sessions.';
COMMENT ON COLUMN @.studio_pod_history.last_heartbeat_at IS 'As in studio_pod_sessions.';
COMMENT ON COLUMN @.studio_pod_history.runs_served IS 'As in studio_pod_sessions.';
COMMENT ON COLUMN @.studio_pod_history.runs_taken_over IS 'How many of its runs another incarnation continued.';
COMMENT ON COLUMN @.studio_pod_history.taken_over_by IS 'The names of the pods that did. NULL: none did.';
COMMENT ON COLUMN @.studio_pod_history.score IS 'The score of the pod, or of the value of its label, as it is now. NULL: none was made.';
COMMENT ON COLUMN @.studio_pod_history.incarnation IS 'As in studio_pod_sessions.';
COMMENT ON COLUMN @.studio_pod_history.labels IS 'As in studio_pod_sessions.';

REVOKE ALL ON FUNCTION @.studio_prune_hours(interval, integer) FROM PUBLIC;
-- Whoever may register a pod may also make the roll-ups, and ask for the deletion of old hours.
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
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE ON %s TO %s'::text,
            '@.studio_pod_heartbeats_hourly'::text, writer.name);
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %s'::text,
            '@.studio_pod_reliability'::text, writer.name);
        EXECUTE pg_catalog.format('GRANT SELECT, UPDATE ON %s TO %s'::text, '@.studio_roll_ups'::text, writer.name);
        EXECUTE pg_catalog.format('GRANT SELECT ON %s TO %s'::text, '@.studio_pod_history'::text, writer.name);
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %s'::text,
            '@.studio_prune_hours(interval, integer)'::text, writer.name);
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
                           WHERE n.oid = '@.studio_roll_ups'::pg_catalog.regclass);
    IF before IS NULL THEN
        RETURN;
    END IF;
    EXECUTE pg_catalog.concat('ALTER TABLE '::text, '@.studio_pod_heartbeats_hourly'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER TABLE '::text, '@.studio_pod_reliability'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER TABLE '::text, '@.studio_roll_ups'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER VIEW '::text, '@.studio_pod_history'::text, ' OWNER TO '::text, before);
    EXECUTE pg_catalog.concat('ALTER FUNCTION '::text, '@.studio_prune_hours(interval, integer)'::text,
        ' OWNER TO '::text, before);
END $function$;
