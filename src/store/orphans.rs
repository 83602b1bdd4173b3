//! Tells pods of runs that nobody owns.

use uuid::Uuid;

use crate::error::Result;
use crate::id::Incarnation;
use crate::pg::pool::Database;
use crate::pg::statement::sql;

/// How many pods are looked at for each kind. More would find a less busy one, and cost more.
const SAMPLE: i64 = 8;

/// Who is told.
pub(crate) struct Told {
    /// For each of these kinds, one pod that has a handler and room. If none of the sample has room, every pod.
    pub(crate) kinds: Vec<String>,
    /// These pods.
    pub(crate) pods: Vec<String>,
    /// Every pod.
    pub(crate) everybody: bool,
    /// Every pod, if a run of one of these kinds has no owner.
    pub(crate) still: Vec<String>,
}

/// Tells pods, if there is a run without an owner.
pub(crate) async fn tell(db: &Database, own: Incarnation, told: &Told) -> Result<()> {
    let own: Uuid = own.as_uuid();
    let Told { kinds, pods, everybody, still } = told;
    db.query("telling of orphans", sql!("tell_of_orphans"), &[&own, kinds, pods, everybody, still, &SAMPLE])
        .await
        .map(drop)
}
