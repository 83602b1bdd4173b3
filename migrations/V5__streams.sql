-- Streams: what a run says while it runs, chunk by chunk, for readers on any pod.

ALTER TABLE studio_runs
    ADD COLUMN stream_generation integer NOT NULL DEFAULT 1,
    ADD COLUMN stream_resets     integer NOT NULL DEFAULT 0,
    ADD COLUMN stream_furthest   bigint  NOT NULL DEFAULT 0,
    ADD COLUMN checkpoint_seq    bigint  NOT NULL DEFAULT 0;
COMMENT ON COLUMN studio_runs.stream_generation IS 'The generation of its stream: raised by each restart that took chunks back.';
COMMENT ON COLUMN studio_runs.stream_resets IS 'How often chunks were taken back, by a restart or by going on from an earlier one.';
COMMENT ON COLUMN studio_runs.stream_furthest IS 'How many chunks the stream had at most when some were taken back. Chunks below count as no progress: they were written before.';
COMMENT ON COLUMN studio_runs.checkpoint_seq IS 'How many chunks the stream had at the checkpoint: the number of the chunk that comes next after it.';

CREATE TABLE studio_run_chunks (
    run_id      uuid        NOT NULL,
    generation  integer     NOT NULL,
    seq         bigint      NOT NULL,
    fence       bigint      NOT NULL,
    at          timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    body        text        NOT NULL,
    CONSTRAINT studio_run_chunks_pkey PRIMARY KEY (run_id, generation, seq)
);
COMMENT ON TABLE  studio_run_chunks IS 'The chunks of the runs'' streams: SELECT string_agg(body, '''' ORDER BY seq) gives all that a run has said.';
COMMENT ON COLUMN studio_run_chunks.run_id IS 'The run.';
COMMENT ON COLUMN studio_run_chunks.generation IS 'The stream''s generation; only the latest is kept.';
COMMENT ON COLUMN studio_run_chunks.seq IS 'The chunk''s number in its generation; the first is 0.';
COMMENT ON COLUMN studio_run_chunks.fence IS 'The fence of the attempt that wrote it.';
COMMENT ON COLUMN studio_run_chunks.at IS 'When it was stored. For people.';
COMMENT ON COLUMN studio_run_chunks.body IS 'What was said.';

CREATE TABLE studio_run_resets (
    run_id      uuid        NOT NULL,
    reset       integer     NOT NULL,
    generation  integer     NOT NULL,
    from_seq    bigint      NOT NULL,
    fence       bigint      NOT NULL,
    at          timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    CONSTRAINT studio_run_resets_pkey PRIMARY KEY (run_id, reset)
);
COMMENT ON TABLE  studio_run_resets IS 'Each time that chunks of a stream were taken back, so that a reader who has them is told.';
COMMENT ON COLUMN studio_run_resets.run_id IS 'The run.';
COMMENT ON COLUMN studio_run_resets.reset IS 'The first of a run is 1.';
COMMENT ON COLUMN studio_run_resets.generation IS 'The generation in which the stream went on.';
COMMENT ON COLUMN studio_run_resets.from_seq IS 'The first chunk that was taken back; 0 in a new generation.';
COMMENT ON COLUMN studio_run_resets.fence IS 'The fence of the attempt that did it.';
COMMENT ON COLUMN studio_run_resets.at IS 'When. For people.';

CREATE FUNCTION studio_stream_channel() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE SET search_path FROM CURRENT
    AS $$ SELECT pg_catalog.concat('podstream_', pg_catalog.current_schema()) $$;
COMMENT ON FUNCTION studio_stream_channel() IS 'The channel on which pods say which runs have new chunks. Nothing depends on it: readers look once a second anyway.';
