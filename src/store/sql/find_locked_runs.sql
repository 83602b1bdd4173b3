-- Finds which of these runs another transaction has locked, and who holds the lock. Claims skip such runs (L12).
--
-- PostgreSQL records row locks only in the rows. If one transaction has locked the row, `xmax` is its number. The
-- holder is then the backend of that transaction, or the name under which it was prepared. If several transactions
-- share the lock, `xmax` is a number of another kind. The holder is then one of all backends and prepared transactions
-- that have locked any row of the table.
--
-- Arguments:
--   run_ids  uuid[]  the runs
--
-- Returns a row for each running run that is locked. `holders` is NULL if the server shows none.
WITH
  -- If the row is free, this locks it until the statement ends.
  stuck AS MATERIALIZED (
    SELECT r.run_id, r.xmax AS xid
      FROM :"schema".studio_runs r
     WHERE r.run_id = ANY (:'run_ids'::uuid[])
       AND r.state = 'running'
       AND NOT EXISTS (SELECT FROM :"schema".studio_runs l WHERE l.run_id = r.run_id FOR NO KEY UPDATE SKIP LOCKED)
  ),
  -- A transaction that locks rows holds its own number, and RowShareLock on the table.
  locks AS MATERIALIZED (
    SELECT l.pid, l.virtualtransaction, l.transactionid, l.locktype
      FROM pg_locks l
     WHERE l.granted
       AND l.pid IS DISTINCT FROM pg_backend_pid()
       AND (l.locktype = 'transactionid'
            OR (l.locktype = 'relation'
                AND l.mode = 'RowShareLock'
                AND l.relation = :'studio_runs'::regclass
                AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())))
  ),
  -- A prepared transaction has no process. Its name is found by its number, which its lock or the name of its virtual
  -- transaction has.
  holders AS MATERIALIZED (
    SELECT l.transactionid, l.locktype,
           CASE WHEN x.gid IS NOT NULL
                THEN format('prepared transaction %L of role %s', x.gid, x.owner)
                ELSE format('server process %s (role %s, application %s, from %s, %s)', l.pid,
                            COALESCE(a.usename, '?'), COALESCE(NULLIF(a.application_name, ''), '?'),
                            COALESCE(host(a.client_addr), 'a local socket'), COALESCE(a.state, '?'))
           END AS who
      FROM locks l
      LEFT JOIN pg_stat_activity a ON a.pid = l.pid
      LEFT JOIN pg_prepared_xacts x
        ON l.pid IS NULL
       AND (x.transaction = l.transactionid OR l.virtualtransaction = '-1/' || x.transaction::text)
  )
SELECT s.run_id,
       COALESCE(
         (SELECT string_agg(DISTINCT h.who, '; ') FROM holders h WHERE h.transactionid = s.xid),
         (SELECT concat('one of: ', string_agg(DISTINCT h.who, '; '))
            FROM holders h
           WHERE h.locktype = 'relation'
          HAVING count(*) > 0)) AS holders
  FROM stuck s;
