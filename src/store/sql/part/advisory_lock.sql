  -- `l` of pg_locks is an advisory lock of this database, on one key of 64 bits. pg_locks shows the locks of all
  -- databases.
  l.locktype = 'advisory'
  AND l.objsubid = 1
  AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
