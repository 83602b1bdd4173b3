-- The columns of studio_foreign_locks that have no comment get one. So every table, view, column and function of
-- podlock's says what it is (`\d+`, `\df+`).

SET LOCAL search_path = pg_catalog, pg_temp;

COMMENT ON COLUMN @.studio_foreign_locks.pod_id IS 'The name of the pod whose lock it is.';
COMMENT ON COLUMN @.studio_foreign_locks.incarnation IS 'The incarnation that has this name in the roster now.';
COMMENT ON COLUMN @.studio_foreign_locks.role IS 'The role that the backend logged in with, or that prepared the transaction. NULL: unknown, because the role was dropped.';
COMMENT ON COLUMN @.studio_foreign_locks.application IS 'The application_name of the backend. NULL: it has none, or this is a prepared transaction.';
COMMENT ON COLUMN @.studio_foreign_locks.prepared IS 'The name of the prepared transaction, for ROLLBACK PREPARED. NULL: a backend holds or wants the lock.';
