//! Finds who keeps a run from being claimed. Claims skip a row that another transaction has locked.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::error::Result;
use crate::id::RunId;
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::statement::sql;

/// A running run whose row another transaction has locked.
#[derive(Clone, Debug)]
pub(crate) struct Hidden {
    pub(crate) run_id: RunId,
    /// Who holds the lock, as far as the server shows it.
    pub(crate) holders: Option<String>,
}

/// Finds which of these runs are locked now, and by whom. Locks a free row only for the duration of the statement.
pub(crate) async fn hidden(db: &Database, runs: &[RunId]) -> Result<Vec<Hidden>> {
    const SQL: &str = sql!("find_locked_runs");
    let ids: Vec<Uuid> = runs.iter().map(RunId::as_uuid).collect();
    let params: [&(dyn ToSql + Sync); 1] = [&ids];
    let rows = db.query("looking who keeps runs from being claimed", SQL, &params).await?;
    rows.iter()
        .map(|row| Ok(Hidden { run_id: row.at::<Uuid>("run_id")?.into(), holders: row.at("holders")? }))
        .collect()
}
