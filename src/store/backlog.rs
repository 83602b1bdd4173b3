//! Reads the backlog.

use crate::error::Result;
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::statement::sql;

/// The most kinds that one read returns. A service has a few. More are kinds that somebody makes at random.
const KINDS_MOST: i64 = 10_000;

/// The backlog of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OfKind {
    pub(crate) kind: String,
    pub(crate) waiting: i64,
    pub(crate) running: i64,
    pub(crate) free_capacity: i64,
    pub(crate) pods: i64,
}

/// Reads the backlog, by kind.
pub(crate) async fn backlog(db: &Database) -> Result<Vec<OfKind>> {
    let rows = db.query("reading the backlog", sql!("read_backlog"), &[&KINDS_MOST]).await?;
    let read = |row: &tokio_postgres::Row| {
        Ok(OfKind {
            kind: row.at("kind")?,
            waiting: row.at("waiting")?,
            running: row.at("running")?,
            free_capacity: row.at("free_capacity")?,
            pods: row.at("pods")?,
        })
    };
    rows.iter().map(read).collect()
}
