//! Finds sessions that hold or want a pod's lock but do not belong to a pod.

use serde::Serialize;
use serde_json::json;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::error::Result;
use crate::id::{Incarnation, PodId};
use crate::pg::reply::Reply;
use crate::pg::session::Session;
use crate::pg::statement::sql;
use crate::pg::txn::Param;

/// A row of `studio_foreign_locks`. It serialises to what `studio_note_foreign_locks` reads.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ForeignLock {
    #[serde(skip)]
    pub(crate) pod_id: String,
    pub(crate) incarnation: Incarnation,
    /// `liveness` or `witness`.
    pub(crate) key: String,
    /// False if the session waits for the lock.
    pub(crate) granted: bool,
    /// `None` if a prepared transaction holds the lock.
    pub(crate) pid: Option<i32>,
    pub(crate) role: Option<String>,
    pub(crate) application: Option<String>,
    pub(crate) address: Option<String>,
    pub(crate) prepared: Option<String>,
    #[serde(skip)]
    pub(crate) who: String,
}

/// The fields that tell one foreign lock from another, so that each is reported once.
pub(crate) type Told = (Incarnation, String, bool, Option<i32>, Option<String>);

impl ForeignLock {
    pub(crate) fn told(&self) -> Told {
        (self.incarnation, self.key.clone(), self.granted, self.pid, self.prepared.clone())
    }
}

/// Lists the foreign locks of the whole roster: at most four for each key, so that one key with many hides none of the
/// others.
pub(crate) async fn foreign_locks(session: &Session) -> Result<Vec<ForeignLock>> {
    const SQL: &str = sql!("list_foreign_locks");
    let rows = session.query("looking for strangers at the pods' locks", SQL, &[]).await?;
    let read = |row: &tokio_postgres::Row| {
        Ok(ForeignLock {
            pod_id: row.at("pod_id")?,
            incarnation: row.at::<Uuid>("incarnation")?.into(),
            key: row.at("key")?,
            granted: row.at("granted")?,
            pid: row.at("pid")?,
            role: row.at("role")?,
            application: row.at("application")?,
            address: row.at("address")?,
            prepared: row.at("prepared")?,
            who: row.at("who")?,
        })
    };
    rows.iter().map(read).collect()
}

/// Records foreign locks that no pod has recorded yet, and returns their positions in `locks`. `None`: another
/// transaction has locked the log.
pub(crate) async fn note(session: &Session, locks: &[&ForeignLock], by: &PodId) -> Result<Option<Vec<usize>>> {
    const SQL: &str = "SELECT @.studio_note_foreign_locks($1::jsonb, $2::text) AS noted";
    let mut numbered = json!(locks);
    for (nth, lock) in numbered.as_array_mut().into_iter().flatten().enumerate() {
        lock["nth"] = json!(nth);
    }
    let params: [Param<'_>; 2] = [(&numbered, Type::JSONB), (&by.as_str(), Type::TEXT)];
    let row = session.query_one("recording strangers at the pods' locks", SQL, &params).await?;
    let noted: Option<Vec<i32>> = row.at("noted")?;
    Ok(noted.map(|noted| noted.into_iter().filter_map(|nth| usize::try_from(nth).ok()).collect()))
}
