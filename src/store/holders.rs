//! Who keeps a run from being claimed: claims pass over a row that another transaction has locked.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::error::Result;
use crate::id::RunId;
use crate::pg::pool::Database;
use crate::pg::reply::Reply;

/// A running run whose row another transaction has locked.
#[derive(Clone, Debug)]
pub(crate) struct Hidden {
    pub(crate) run_id: RunId,
    /// Who has it, as far as the server shows it.
    pub(crate) holders: Option<String>,
}

/// Which of these runs are locked now, and by whom. Locks none of them for longer than the statement takes.
///
/// Row locks stand in the rows alone. `xmax` is the transaction that has this row, if one has: then its backend, or its name
/// if it was prepared, is the answer. If several share the row, `xmax` is a number of another kind. Then the answer is every
/// backend and prepared transaction that has locked any row of the table.
pub(crate) async fn hidden(db: &Database, runs: &[RunId]) -> Result<Vec<Hidden>> {
    const SQL: &str = "WITH stuck AS MATERIALIZED ( \
           SELECT r.run_id, r.xmax AS xid FROM @.studio_runs r \
            WHERE r.run_id = ANY ($1::pg_catalog.uuid[]) AND r.state = 'running' \
              AND NOT EXISTS (SELECT FROM @.studio_runs l WHERE l.run_id = r.run_id FOR NO KEY UPDATE SKIP LOCKED) \
         ), locks AS MATERIALIZED ( \
           SELECT l.pid, l.virtualtransaction, l.transactionid, l.locktype FROM pg_catalog.pg_locks l \
            WHERE l.granted AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid() \
              AND (l.locktype = 'transactionid' OR (l.locktype = 'relation' AND l.mode = 'RowShareLock' \
                    AND l.relation = '@.studio_runs'::pg_catalog.regclass \
                    AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()))) \
         ), holders AS MATERIALIZED ( \
           SELECT l.transactionid, l.locktype, CASE WHEN x.gid IS NOT NULL \
               THEN pg_catalog.format('prepared transaction %L of role %s', x.gid, x.owner) \
               ELSE pg_catalog.format('server process %s (role %s, application %s, from %s, %s)', l.pid, COALESCE(a.usename, '?'), \
                      COALESCE(NULLIF(a.application_name, ''), '?'), COALESCE(pg_catalog.host(a.client_addr), 'a local socket'), \
                      COALESCE(a.state, '?')) END AS who \
             FROM locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
             LEFT JOIN pg_catalog.pg_prepared_xacts x ON l.pid IS NULL \
              AND (x.transaction = l.transactionid OR l.virtualtransaction = '-1/' || x.transaction::pg_catalog.text) \
         ) \
         SELECT s.run_id, COALESCE( \
             (SELECT pg_catalog.string_agg(DISTINCT h.who, '; ') FROM holders h WHERE h.transactionid = s.xid), \
             (SELECT pg_catalog.concat('one of: ', pg_catalog.string_agg(DISTINCT h.who, '; ')) FROM holders h \
               WHERE h.locktype = 'relation' HAVING pg_catalog.count(*) > 0)) \
           FROM stuck s";
    let ids: Vec<Uuid> = runs.iter().map(RunId::as_uuid).collect();
    let params: [&(dyn ToSql + Sync); 1] = [&ids];
    let rows = db.query("looking who keeps runs from being claimed", SQL, &params).await?;
    rows.iter().map(|row| Ok(Hidden { run_id: row.at::<Uuid>(0)?.into(), holders: row.at(1)? })).collect()
}
