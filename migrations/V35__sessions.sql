-- What the history keeps of each incarnation, so that a score can be made from it, and what others know of its end.

SET LOCAL search_path = pg_catalog, pg_temp;

-- Each row meets the new CHECK, because it met the old one. NOT VALID saves a scan of the table under its lock.
ALTER TABLE @.studio_pod_sessions
    ADD COLUMN labels            jsonb   NOT NULL DEFAULT '{}',
    ADD COLUMN last_heartbeat_at timestamptz,
    ADD COLUMN runs_served       bigint  NOT NULL DEFAULT 0,
    ADD COLUMN counters          jsonb   NOT NULL DEFAULT '{}',
    ADD COLUMN exit_code         integer,
    ADD COLUMN exit_signal       integer,
    ADD COLUMN cgroup            jsonb,
    DROP CONSTRAINT studio_pod_sessions_cause_check,
    ADD CONSTRAINT studio_pod_sessions_cause_check CHECK (cause IN
        ('frozen', 'cut_off', 'runtime_blocked', 'sessions_ended', 'lock_lost', 'row_deleted', 'failed', 'dropped',
         'closed', 'silent', 'killed', 'exited', 'out_of_memory', 'unrecorded')) NOT VALID,
    -- Each pod updates its own row every few seconds. Room in the page keeps these updates out of the indexes.
    SET (fillfactor = 70);
-- The open ones: few, whatever the history holds.
CREATE INDEX ON @.studio_pod_sessions (began_at) WHERE ended_at IS NULL;

COMMENT ON COLUMN @.studio_pod_sessions.labels IS 'The labels of the pod when it registered, as in studio_pods.';
COMMENT ON COLUMN @.studio_pod_sessions.last_heartbeat_at IS 'When the pod last wrote samples, by the server''s clock. NULL: it wrote none. For people, and for the end of a session that nobody recorded.';
COMMENT ON COLUMN @.studio_pod_sessions.runs_served IS 'How many runs the incarnation has begun to execute, as it last said.';
COMMENT ON COLUMN @.studio_pod_sessions.counters IS 'Counters of the application''s own, by name, as the incarnation last said.';
COMMENT ON COLUMN @.studio_pod_sessions.exit_code IS 'The exit code of its process, as a supervisor or the service itself said. NULL: unknown.';
COMMENT ON COLUMN @.studio_pod_sessions.exit_signal IS 'The signal that ended its process, as a supervisor or the service itself said. NULL: none, or unknown.';
COMMENT ON COLUMN @.studio_pod_sessions.cgroup IS 'The cgroup of its process when it registered, and how many processes of that cgroup had been killed for lack of memory. The next process of the name compares. NULL: unknown.';
COMMENT ON COLUMN @.studio_pod_sessions.cause IS 'What lay behind the reason; NULL: not known, or the reason says it all. Written by the pod itself, before its end or when its process returned: frozen: the process was stopped past its deadline. cut_off: the database did not answer it until its deadline. runtime_blocked: its application''s runtime ran no task. sessions_ended: something ended its sessions while it lived. lock_lost: its session lived and lost the lock. row_deleted: its row was deleted while it held its lock. failed: it ended for a reason that it cannot repair. dropped: its service dropped it without a shutdown. Written by its burier: closed: it beat until just before, so the lease cannot have ended: its process ended, or its connections were closed. silent: it had not beaten for a lease, so the lease may have ended: frozen, cut off, its host lost, or killed while it got nowhere. Written by whoever watched the process, or by the next process of the name: killed: a signal ended the process. exited: it ended with an exit code that is not 0. out_of_memory: the kernel killed it for lack of memory. Written by a pod that repairs the history: unrecorded: nobody recorded the end.';
