-- Why an incarnation ended, finer than its reason: by the pod itself where it can tell, else what its burier saw.

ALTER TABLE studio_pod_sessions ADD COLUMN cause text,
    ADD CONSTRAINT studio_pod_sessions_cause_check CHECK (cause IN
        ('frozen', 'cut_off', 'runtime_blocked', 'sessions_ended', 'lock_lost', 'row_deleted', 'failed', 'dropped',
         'closed', 'silent'));
COMMENT ON COLUMN studio_pod_sessions.cause IS 'What lay behind the reason; NULL: not known, or the reason says it all. Written by the pod itself, before its end or when its process returned: frozen: the process was stopped past its deadline. cut_off: the database did not answer it until its deadline. runtime_blocked: its application''s runtime ran no task. sessions_ended: something ended its sessions while it lived. lock_lost: its session lived and lost the lock. row_deleted: its row was deleted while it held its lock. failed: it ended for a reason that it cannot repair. dropped: its service dropped it without a shutdown. Written by its burier: closed: it beat until just before, so the lease cannot have ended: its process ended, or its connections were closed. silent: it had not beaten for a lease, so the lease may have ended: frozen, cut off, its host lost, or killed while it got nowhere.';

CREATE FUNCTION studio_note_cause(incarnation uuid, cause text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path FROM CURRENT
    AS $$
#variable_conflict use_column
DECLARE
    waits CONSTANT text := pg_catalog.current_setting('lock_timeout');
    noted boolean := false;
BEGIN
    -- A pod calls this as it ends: nothing may keep its locks longer than the death that it tells of.
    PERFORM pg_catalog.set_config('lock_timeout', '50ms'::text, true);
    BEGIN
        UPDATE studio_pod_sessions AS s SET cause = $2
            WHERE s.incarnation IN (SELECT o.incarnation FROM studio_pod_sessions AS o
                WHERE o.incarnation = $1 AND o.ended_at IS NULL FOR NO KEY UPDATE SKIP LOCKED);
        noted := FOUND;
    EXCEPTION WHEN lock_not_available THEN
        noted := false;
    END;
    PERFORM pg_catalog.set_config('lock_timeout', waits, true);
    RETURN noted;
END $$;
COMMENT ON FUNCTION studio_note_cause(uuid, text) IS 'A pod that is about to end its sessions says why, of its own incarnation and before it is buried. Waits for no row, and at most 50 ms for a table; false: not written.';
