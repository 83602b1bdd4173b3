//! Reads how busy the pods of the fleet are, for moves.

use std::sync::Arc;

use tokio_postgres::Row;

use crate::error::Result;
use crate::id::Incarnation;
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::statement::sql;
use crate::protocol::moves::{Fleet, PodLoad};

/// The most pods that one read returns. A larger fleet is not spread evenly: a pod compares itself with this many.
const PODS_MOST: i64 = 4096;

/// Reads the pods that take runs of these kinds, and how many runs of these kinds wait for an owner.
pub(crate) async fn fleet(db: &Database, own: Incarnation, kinds: &[String]) -> Result<Fleet> {
    let rows =
        db.query("reading how busy the pods are", sql!("read_loads"), &[&own.as_uuid(), &kinds, &PODS_MOST]).await?;
    let mut fleet = Fleet::default();
    for row in &rows {
        if row.at("is_own")? {
            fleet.me = Some(fleet.pods.len());
        }
        fleet.waiting = number(row.at("waiting")?);
        fleet.pods.push(read_load(row)?);
    }
    Ok(fleet)
}

fn read_load(row: &Row) -> Result<PodLoad> {
    Ok(PodLoad {
        kinds: row.at::<Vec<String>>("kinds")?.into_iter().map(Arc::from).collect(),
        running: number(row.at("running")?),
        movable: number(row.at("movable")?),
        capacity: row.at::<Option<i32>>("capacity")?.map(|n| number(n.into())),
    })
}

fn number(n: i64) -> usize {
    usize::try_from(n).unwrap_or(0)
}
