-- A pod says which of its required progress sources stands still, and the event of its suspicion names that source.

ALTER TABLE studio_pods ADD COLUMN standing text;
COMMENT ON COLUMN studio_pods.standing IS 'Why this pod does not beat: the required progress source that stands still. NULL if none does.';

CREATE OR REPLACE FUNCTION studio_suspect(suspect uuid, stalled_at bigint, by_pod text, looks integer) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
DECLARE
    pod text;
    source text;
BEGIN
    -- All peers suspect it at about the same time: one of them writes it down.
    PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(pg_catalog.current_schema()::text, 2::bigint));
    SELECT p.pod_id, p.standing INTO pod, source
      FROM studio_pods AS p WHERE p.incarnation = suspect AND p.event_index = stalled_at;
    -- Whether it was written down before is in the snapshot, once its event is pruned.
    IF pod IS NULL OR EXISTS (SELECT FROM studio_pod_events AS e WHERE e.pod_id = pod AND e.incarnation = suspect
            AND e.kind = 'suspected'::text AND e.detail -> 'event_index'::text = pg_catalog.to_jsonb(stalled_at))
       OR EXISTS (SELECT FROM studio_pod_events AS e WHERE e.kind = 'snapshot'::text
            AND e.detail -> 'suspected'::text -> suspect::text = pg_catalog.to_jsonb(stalled_at)) THEN
        RETURN false;
    END IF;
    -- No source: the whole application stands still.
    PERFORM studio_append_event('suspected'::text, pod, suspect, by_pod, pg_catalog.jsonb_strip_nulls(
        pg_catalog.jsonb_build_object('event_index'::text, stalled_at, 'looks'::text, looks, 'source'::text, source)));
    RETURN true;
END $$;
