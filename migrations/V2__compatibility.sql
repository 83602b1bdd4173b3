-- Which binaries may work on this schema.
--
-- A binary knows the versions that it was built with. On an older schema it migrates, or refuses; on a newer one it works
-- if that is compatible: usable_from is the lowest version that a binary must know. A migration that only adds leaves it
-- alone; one after which older binaries would go wrong raises it to its own number.

CREATE TABLE studio_schema_compat (
    single       boolean NOT NULL DEFAULT true,
    usable_from  integer NOT NULL,
    CONSTRAINT studio_schema_compat_pkey PRIMARY KEY (single),
    CONSTRAINT studio_schema_compat_single_check CHECK (single)
);
INSERT INTO studio_schema_compat (usable_from) VALUES (1);

COMMENT ON TABLE  studio_schema_compat IS 'One row: which binaries may work on this schema.';
COMMENT ON COLUMN studio_schema_compat.single IS 'Always true: there is one row.';
COMMENT ON COLUMN studio_schema_compat.usable_from IS 'The lowest version of the schema that a binary must know to work on it; see studio_schema_history for the versions.';
