-- Each pod has a NOTIFY channel of its own beside that of the fleet.
--
-- What concerns one pod goes to its channel: a request to drain, a run that was given to it or cancelled, a run without an
-- owner that it was chosen for. From PostgreSQL 19 on, the server wakes only the listeners of a channel.

SET LOCAL search_path = pg_catalog, pg_temp;

ALTER TABLE @.studio_pods
    ADD COLUMN channel pg_catalog.text,
    ADD CONSTRAINT studio_pods_channel_check
        CHECK (pg_catalog.octet_length(channel) OPERATOR(pg_catalog.>=) 1::pg_catalog.int4
           AND pg_catalog.octet_length(channel) OPERATOR(pg_catalog.<=) 63::pg_catalog.int4);

COMMENT ON COLUMN @.studio_pods.channel IS 'The NOTIFY channel on which only this pod listens. NULL: it has none, because its version is too old; it hears the channel of the fleet.';

-- A pod whose clean stop is complete never comes back. So its row may go before anybody has settled.
ALTER TABLE @.studio_pods ADD COLUMN stopped pg_catalog.bool NOT NULL DEFAULT false;

COMMENT ON COLUMN @.studio_pods.stopped IS 'Whether its clean stop is complete: no run of it is executed any more, and its sessions are about to end. Any pod may remove the row then, as soon as the locks are free.';

-- A claim of runs that no other pod had is news only for those who read the log, and they read it once a second anyway. Under
-- load there are many such claims, so they notify nobody.
CREATE OR REPLACE FUNCTION @.studio_append_event(kind text, pod_id text, incarnation uuid, by_pod text, detail jsonb) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    appended bigint;
BEGIN
    -- The insert locks the log until commit (studio_order_events). Call this as the last statement before COMMIT, sent together
    -- with it.
    INSERT INTO @.studio_pod_events (kind, pod_id, incarnation, by_pod, detail)
        VALUES ($1, $2, $3, $4, $5) RETURNING idx INTO appended;
    IF $1 = 'claimed'::text AND $5 -> 'from'::text <@ pg_catalog.jsonb_build_array($3) THEN
        RETURN appended;
    END IF;
    -- Pods act on no event of the first kinds.
    PERFORM pg_catalog.pg_notify(@.studio_channel(),
        CASE WHEN $1 IN ('claimed'::text, 'detached'::text, 'held'::text) THEN 'log'::text ELSE 'roster'::text END);
    RETURN appended;
END $function$;
COMMENT ON FUNCTION @.studio_append_event(text, text, uuid, text, jsonb) IS 'Appends to studio_pod_events and tells every pod that there is something to read, unless it is a claim of runs that no other pod had. The last statement of its transaction.';

CREATE OR REPLACE FUNCTION @.studio_drain(pod text) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
DECLARE
    asked uuid;
    own_channel text;
BEGIN
    PERFORM @.studio_limit_transaction(3000::integer);
    UPDATE @.studio_pods AS p SET drain_requested = COALESCE(p.drain_requested, session_user::text)
        WHERE p.pod_id = pod RETURNING p.incarnation, p.channel INTO asked, own_channel;
    IF asked IS NULL THEN
        RAISE EXCEPTION 'no pod named % is in the roster', pg_catalog.quote_literal(pod)
            USING ERRCODE = 'no_data_found', HINT = 'SELECT pod_id FROM studio_pod_status lists them.';
    END IF;
    PERFORM pg_catalog.pg_notify(COALESCE(own_channel, @.studio_channel()), 'asked'::text);
    RETURN asked;
END $function$;
