-- The event log tells of runs that failed.

CREATE FUNCTION studio_note_failures(pod_id text, incarnation uuid, kinds text[], counts bigint[], runs uuid[], errors text[])
    RETURNS integer
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
DECLARE
    noted integer;
BEGIN
    -- The lock of studio_append_event: idx rises in commit order. Nobody is notified. A failed run changes nothing that a
    -- pod must act on, and a NOTIFY from each pod of a failing fleet would slow every commit down. Readers of the log look
    -- once a second anyway.
    PERFORM pg_catalog.pg_advisory_xact_lock(
        pg_catalog.hashtextextended(pg_catalog.current_schema()::pg_catalog.text, 2::pg_catalog.int8));
    INSERT INTO studio_pod_events (kind, pod_id, incarnation, by_pod, detail)
    SELECT 'run_failed'::pg_catalog.text, $1, $2, $1,
           pg_catalog.jsonb_build_object('kind'::pg_catalog.text, f.kind, 'runs'::pg_catalog.text, f.count,
               'run'::pg_catalog.text, f.run, 'error'::pg_catalog.text, pg_catalog.left(f.error, 1001::pg_catalog.int4))
      FROM ROWS FROM (pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6))
           WITH ORDINALITY AS f(kind, count, run, error, nth)
     WHERE f.kind IS NOT NULL
     ORDER BY f.nth
     LIMIT 32::pg_catalog.int8;
    GET DIAGNOSTICS noted = ROW_COUNT;
    RETURN noted;
END $$;
COMMENT ON FUNCTION studio_note_failures(text, uuid, text[], bigint[], uuid[], text[]) IS 'Appends one event run_failed for each kind: how many of its runs failed on this pod since the last one, the last of them, and the beginning of its error. At most 32 kinds a call. Notifies nobody. The last statement of its transaction.';

COMMENT ON COLUMN studio_pod_events.kind IS 'joined, draining, detached, returned, suspected, evicted, buried, claimed, quarantined; held: its lock is free and it is not buried yet, why and for how long; run_failed: runs of a kind failed on a pod; snapshot: the roster as it was after this position, in place of all events up to it.';
