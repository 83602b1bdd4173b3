//! Tells pods of runs that nobody owns.

use uuid::Uuid;

use crate::error::Result;
use crate::id::Incarnation;
use crate::pg::pool::Database;
use crate::pg::statement::sql;

/// How many pods are looked at for each kind. More would find a less busy one, and cost more.
const SAMPLE: i64 = 8;

/// For each kind tells one pod that has a handler and room, and tells the named pods; or tells every pod.
pub(crate) async fn tell(
    db: &Database,
    own: Incarnation,
    kinds: &[&str],
    pods: &[&str],
    everybody: bool,
) -> Result<()> {
    let own: Uuid = own.as_uuid();
    db.query("telling of orphans", sql!("tell_of_orphans"), &[&own, &kinds, &pods, &everybody, &SAMPLE]).await.map(drop)
}
