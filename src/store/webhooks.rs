//! Statements on `studio_webhooks`: which pod delivers the alerts to an endpoint, and how far it is.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::alerts;
use crate::alert::Alert;
use crate::error::Result;
use crate::id::Incarnation;
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::statement::sql;
use crate::pg::txn::one;

/// How many events one page of the log has: 256, those that are no alerts included. More take more memory, at most about
/// 4 KB each. Fewer cost statements.
const PAGE: i64 = 256;

/// Which pod delivers to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) incarnation: Option<Incarnation>,
    /// The number of its rounds so far.
    pub(crate) rounds: i64,
    /// Whether it is in the roster.
    pub(crate) is_held: bool,
}

/// Reads which pod delivers to an endpoint. `None`: no pod has delivered to it yet.
pub(crate) async fn look(db: &Database, name: &str) -> Result<Option<Holder>> {
    const SQL: &str = sql!("look_at_webhook");
    let row = db.query_opt("looking at the webhook", SQL, &[&name]).await?;
    let read = |row: tokio_postgres::Row| {
        let incarnation = row.at::<Option<Uuid>>("incarnation")?.map(Incarnation::from);
        Ok(Holder { incarnation, rounds: row.at("rounds")?, is_held: row.at("is_held")? })
    };
    row.map(read).transpose()
}

/// How far an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Alerts up to this position of the log are delivered or given up.
    pub(crate) idx: i64,
    /// How many attempts for the next alert were begun.
    pub(crate) attempts: u32,
}

/// Makes this pod the one that delivers. `stuck`: the number of rounds at which the present one stands still. `None`:
/// another pod delivers.
pub(crate) async fn hold(db: &Database, own: Incarnation, name: &str, stuck: Option<i64>) -> Result<Option<Reached>> {
    const SQL: &str = sql!("hold_webhook");
    let row = db.query_opt("taking over the webhook", SQL, &[&own.as_uuid(), &name, &stuck]).await?;
    let read = |row: tokio_postgres::Row| {
        let attempts = u32::try_from(row.at::<i32>("attempts")?).unwrap_or(0);
        Ok(Reached { idx: row.at("idx")?, attempts })
    };
    row.map(read).transpose()
}

/// What became of a write of the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    Written,
    /// Another transaction has locked the row.
    Locked,
    /// This pod does not deliver any more.
    Lost,
}

/// Writes how far the endpoint is, and counts a round.
pub(crate) async fn note(db: &Database, own: Incarnation, name: &str, reached: Reached) -> Result<Moved> {
    const SQL: &str = sql!("move_webhook");
    let attempts = i32::try_from(reached.attempts).unwrap_or(i32::MAX);
    let params: [&(dyn ToSql + Sync); 4] = [&own.as_uuid(), &name, &reached.idx, &attempts];
    let step = "writing how far the webhook is";
    let row = one(step, db.query(step, SQL, &params).await?)?;
    Ok(match (row.at("holds")?, row.at("moved")?) {
        (_, true) => Moved::Written,
        (true, false) => Moved::Locked,
        (false, false) => Moved::Lost,
    })
}

/// A page of the log after a position.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) alerts: Vec<Alert>,
    /// The position of the page's last event. `None`: there is no event after the position.
    pub(crate) end: Option<i64>,
    /// The position of the log's last event; 0 if it is empty.
    pub(crate) log_end: i64,
    /// The position of the snapshot, if the page has it.
    pub(crate) snapshot: Option<i64>,
}

/// Reads the page of the log after a position.
pub(crate) async fn page(db: &Database, after: i64) -> Result<Page> {
    const SQL: &str = sql!("read_alerts", "alert_columns");
    let mut page = Page::default();
    for row in &db.query("reading alerts", SQL, &[&after, &PAGE]).await? {
        (page.end, page.log_end) = (row.at("page_end")?, row.at("log_end")?);
        let Some(idx) = row.at::<Option<i64>>("idx")? else { continue };
        if row.at::<&str>("kind")? == "snapshot" {
            page.snapshot = Some(idx);
        }
        page.alerts.extend(alerts::read(row, db.schema())?);
    }
    Ok(page)
}
