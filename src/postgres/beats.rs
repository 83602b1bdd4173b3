//! Beats, and those whose beats have stopped.

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::session::Session;
use super::txn::Param;
use crate::error::Result;
use crate::id::{Incarnation, PodId};
use crate::protocol::stall;

/// Writes the next event index into the pod's row.
pub(crate) async fn beat(session: &Session, incarnation: Incarnation) -> Result<()> {
    const SQL: &str = "UPDATE @.studio_pods SET event_index = pg_catalog.nextval('@.studio_beat'::pg_catalog.regclass), \
         beat_at = pg_catalog.now() WHERE incarnation = $1";
    session.query("beating", SQL, &[(&incarnation.as_uuid(), Type::UUID)]).await.map(drop)
}

/// The whole roster's event indices, our own among them, and who holds both of its locks.
pub(crate) async fn beats(session: &Session, own: Incarnation) -> Result<(Option<i64>, Vec<stall::Beat>)> {
    const SQL: &str = "WITH held AS MATERIALIZED ( \
           SELECT ((l.classid::bigint << 32) | l.objid::bigint) AS key, l.pid FROM pg_catalog.pg_locks l \
            WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ExclusiveLock' \
              AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) \
         ) SELECT p.incarnation, p.event_index, \
             EXISTS (SELECT FROM held h WHERE h.key = p.lock_key AND h.pid = p.liveness_pid) \
             AND EXISTS (SELECT FROM held h WHERE h.key = p.witness_key AND h.pid = p.control_pid) \
           FROM @.studio_pods p WHERE p.state = 'active' OR p.incarnation = $1";
    let rows = session.query("looking at the peers' beats", SQL, &[(&own.as_uuid(), Type::UUID)]).await?;
    let read = |row: &tokio_postgres::Row| stall::Beat {
        incarnation: row.get::<_, Uuid>(0).into(),
        index: row.get(1),
        attached: row.get(2),
    };
    let (own, peers): (Vec<_>, Vec<_>) = rows.iter().map(read).partition(|beat| beat.incarnation == own);
    Ok((own.first().map(|beat| beat.index), peers))
}

/// Writes down that a peer is suspected, once for each index at which it stands. False: another did, or it moved.
pub(crate) async fn suspect(session: &Session, by: &PodId, stalled: &stall::Stalled) -> Result<bool> {
    const SQL: &str = "SELECT @.studio_suspect($1, $2, $3, $4)";
    let looks = i32::try_from(stalled.looks).unwrap_or(i32::MAX);
    let params: [Param<'_>; 4] = [
        (&stalled.incarnation.as_uuid(), Type::UUID),
        (&stalled.index, Type::INT8),
        (&by.as_str(), Type::TEXT),
        (&looks, Type::INT4),
    ];
    Ok(session.query_one("suspecting a peer", SQL, &params).await?.get(0))
}

/// Puts a peer out that still stands at the index at which it was suspected: how many backends were ended.
pub(crate) async fn put_out(session: &Session, by: &PodId, stalled: &stall::Stalled) -> Result<Option<i32>> {
    const SQL: &str = "SELECT @.studio_end_backends($1, $2, 'stalled', $3)";
    let params: [Param<'_>; 3] =
        [(&stalled.incarnation.as_uuid(), Type::UUID), (&stalled.index, Type::INT8), (&by.as_str(), Type::TEXT)];
    Ok(session.query_one("putting a peer out", SQL, &params).await?.get(0))
}
