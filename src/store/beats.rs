//! Statements on beats, and on pods whose beats have stopped.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::pods::interval;
use crate::error::Result;
use crate::id::{Incarnation, PodId};
use crate::pg::reply::Reply;
use crate::pg::session::Session;
use crate::pg::statement::sql;
use crate::pg::txn::{Param, one};
use crate::protocol::stall;

/// Writes the next event index into the pod's row. A pod beats only while every source that it requires makes
/// progress.
pub(crate) async fn beat(session: &Session, incarnation: Incarnation) -> Result<()> {
    const SQL: &str = sql!("beat");
    session.query("beating", SQL, &[(&incarnation.as_uuid(), Type::UUID)]).await.map(drop)
}

/// Instead of a beat, records which required source makes no progress, or that none is stuck. Returns false if the row
/// said so before.
pub(crate) async fn stand_still(session: &Session, incarnation: Incarnation, source: Option<&str>) -> Result<bool> {
    const SQL: &str = sql!("record_standing");
    let params: [Param<'_>; 2] = [(&incarnation.as_uuid(), Type::UUID), (&source, Type::TEXT)];
    Ok(!session.query("saying what stands still", SQL, &params).await?.is_empty())
}

/// The beats of the fleet, from one statement.
#[derive(Debug, Default)]
pub(crate) struct Beats {
    /// Our own index. `None` if we are not in the roster.
    pub(crate) own: Option<i64>,
    /// Those of the peers whose locks are both held. Other peers are not counted.
    pub(crate) peers: Vec<stall::Beat>,
    /// The required sources that make no progress, as their pods recorded them.
    pub(crate) standing: BTreeMap<Incarnation, String>,
}

/// Reads the event indices of those of `peers` whose locks are both held, and our own.
pub(crate) async fn beats(session: &Session, own: Incarnation, peers: &[Incarnation]) -> Result<Beats> {
    const SQL: &str = sql!("read_beats");
    let peers: Vec<Uuid> = peers.iter().map(Incarnation::as_uuid).collect();
    let params: [Param<'_>; 2] = [(&own.as_uuid(), Type::UUID), (&peers, Type::UUID_ARRAY)];
    let rows = session.query("looking at the peers' beats", SQL, &params).await?;
    let mut beats = Beats::default();
    for row in rows {
        let (incarnation, index) = (Incarnation::from(row.at::<Uuid>("incarnation")?), row.at("event_index")?);
        if incarnation == own {
            beats.own = Some(index);
            continue;
        }
        beats.peers.push(stall::Beat { incarnation, index, attached: true, every: interval(row.at("beat_ms")?) });
        beats.standing.extend(row.at::<Option<String>>("standing")?.map(|source| (incarnation, source)));
    }
    Ok(beats)
}

/// Records that a peer is suspected, once for each index at which its beats stopped. Returns false if another pod
/// recorded it, or if the peer's index changed.
pub(crate) async fn suspect(session: &Session, by: &PodId, stalled: &stall::Stalled) -> Result<bool> {
    const SQL: &str = sql!("suspect_peer");
    let looks = i32::try_from(stalled.looks).unwrap_or(i32::MAX);
    let params: [Param<'_>; 4] = [
        (&stalled.incarnation.as_uuid(), Type::UUID),
        (&stalled.index, Type::INT8),
        (&by.as_str(), Type::TEXT),
        (&looks, Type::INT4),
    ];
    let step = "suspecting a peer";
    one(step, session.query_and_tell(step, SQL, &params).await?)?.at("suspected")
}

/// Evicts a peer whose index is still the one at which it was suspected. Returns how many of its backends were ended.
pub(crate) async fn evict(session: &Session, by: &PodId, stalled: &stall::Stalled) -> Result<Option<i32>> {
    const SQL: &str = sql!("evict_stalled_peer");
    let params: [Param<'_>; 3] =
        [(&stalled.incarnation.as_uuid(), Type::UUID), (&stalled.index, Type::INT8), (&by.as_str(), Type::TEXT)];
    let step = "putting a peer out";
    one(step, session.query_and_tell(step, SQL, &params).await?)?.at("ended")
}
