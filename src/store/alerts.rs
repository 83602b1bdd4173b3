//! Reads alerts from rows of the event log.

use tokio_postgres::Row;
use uuid::Uuid;

use crate::alert::Alert;
use crate::error::Result;
use crate::id::{Incarnation, PodId};
use crate::pg::reply::Reply;
use crate::pg::schema::Schema;
use crate::protocol::alerts::{self, AlertKind};
use crate::protocol::event::EventKind;

/// The alert that a row of `alert_columns.sql` is. `None`: it is none, or it was made by hand and lacks what an alert says.
pub(crate) fn read(row: &Row, schema: &Schema) -> Result<Option<Alert>> {
    let reason: Option<String> = row.at("reason")?;
    let event = EventKind::parse(row.at("kind")?);
    let Some((event, kind)) = event.and_then(|event| Some((event, alerts::alert_of(event, reason.as_deref())?))) else {
        return Ok(None);
    };
    let incarnation = match event {
        // The event is of the pod that took the name. The alert is about the incarnation that had it.
        EventKind::Joined => row.at::<Option<&str>>("replaced")?.and_then(|text| text.parse().ok()),
        _ => Some(row.at::<Uuid>("incarnation")?),
    };
    let pod = PodId::new(row.at::<String>("pod_id")?);
    let (Some(incarnation), Ok(pod)) = (incarnation.map(Incarnation::from), pod) else { return Ok(None) };
    let idx: i64 = row.at("idx")?;
    let mut alert = Alert {
        kind,
        id: Alert::id_of(idx, incarnation),
        idx,
        at: row.at("at")?,
        schema: schema.name().to_owned(),
        pod,
        incarnation,
        reason: None,
        cause: None,
        by: row.at("by_pod")?,
        run_id: None,
        run_kind: None,
        workers: None,
    };
    match kind {
        AlertKind::Lost => (alert.reason, alert.cause) = (reason, row.at("cause")?),
        AlertKind::Quarantined => {
            let why = if row.at("is_unclaimable")? { "unclaimable" } else { "crashes" };
            alert.reason = Some(why.to_owned());
            alert.run_id = row.at::<Option<&str>>("run")?.and_then(|run| run.parse().ok());
            alert.run_kind = row.at("run_kind")?;
        }
        AlertKind::Inactive => {
            alert.workers = row.at::<Option<&str>>("workers")?.and_then(|workers| workers.parse().ok());
        }
    }
    Ok(Some(alert))
}
