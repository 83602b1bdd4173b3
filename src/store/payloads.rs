//! Reads inputs and checkpoints of claimed runs that were too large for the claim to return. Each read names the owner
//! and the fence (L5), so it returns nothing for a run that was claimed again meanwhile.

use serde_json::Value;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::rows::Owner;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::id::RunId;
use crate::pg::pool::Database;
use crate::pg::reply::Reply;
use crate::pg::statement::sql;

const READ: &str = sql!("read_payloads");
const READ_PIECE: &str = sql!("read_payload_piece", "owned_by");

/// A run's input and checkpoint, for its handler.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Payload {
    pub(crate) input: Value,
    pub(crate) checkpoint: Option<Value>,
}

/// The result of reading one run's payload.
#[derive(Clone, Debug)]
pub(crate) enum Read {
    Payload(Payload),
    /// The payload exists, but cannot be given to a handler. The text says why.
    Unreadable(String),
}

/// Reads the payloads of several runs of one incarnation in one statement. Leaves out runs that are no longer their
/// owner's.
pub(crate) async fn read(db: &Database, owners: &[Owner]) -> Result<Vec<(RunId, Read)>> {
    let ids: Vec<_> = owners.iter().map(|o| o.run_id.as_uuid()).collect();
    let incarnations: Vec<_> = owners.iter().map(|o| o.incarnation.as_uuid()).collect();
    let fences: Vec<_> = owners.iter().map(|o| o.fence.get()).collect();
    let rows = db.query("reading inputs and checkpoints", READ, &[&ids, &incarnations, &fences]).await?;
    let read = rows.iter().map(|row| {
        let payload =
            row.try_get("input").and_then(|input| Ok(Payload { input, checkpoint: row.try_get("checkpoint")? }));
        let read = payload.map_or_else(|e| Read::Unreadable(chain(&e)), Read::Payload);
        Ok((row.at::<Uuid>("run_id")?.into(), read))
    });
    read.collect()
}

/// The bytes of a piece: at first, the least, and the most. A piece that does not end in time is halved, and one that
/// does is doubled. The server decompresses the whole value for each piece, so large pieces are cheaper. Below the
/// least size, a statement takes as long as for one byte.
const PIECE: i32 = 1 << 20;
const PIECE_MIN: i32 = 16 << 10;
const PIECE_MAX: i32 = 8 << 20;

/// Reads one run's payload in pieces, so that each statement ends in time whatever the size. `None`: the run is no
/// longer the owner's.
pub(crate) async fn read_in_pieces(db: &Database, owner: Owner) -> Result<Option<Read>> {
    let Some(input) = read_text(db, owner, "input").await? else { return Ok(None) };
    let Some(checkpoint) = read_text(db, owner, "checkpoint").await? else { return Ok(None) };
    let parse = |text: Vec<u8>| serde_json::from_slice::<Value>(&text).map_err(|e| chain(&e));
    let payload = input.map_or(Ok(Value::Null), parse).and_then(|input| {
        let checkpoint = checkpoint.map(parse).transpose()?;
        Ok(Payload { input, checkpoint })
    });
    Ok(Some(payload.map_or_else(Read::Unreadable, Read::Payload)))
}

/// Reads a column as text. `None`: the run is no longer the owner's. `Some(None)`: the column is NULL.
///
/// A checkpoint cannot change between two pieces. Only the owner saves one, and no handler has begun under this fence.
async fn read_text(db: &Database, owner: Owner, column: &'static str) -> Result<Option<Option<Vec<u8>>>> {
    let step = format!("reading the {column} of run {} in pieces", owner.run_id);
    let (run_id, incarnation, fence) = (owner.run_id.as_uuid(), owner.incarnation.as_uuid(), owner.fence.get());
    let (mut text, mut piece) = (Vec::new(), PIECE);
    loop {
        let from = i32::try_from(text.len() + 1)
            .map_err(|_| Error::new(ErrorKind::TooLarge, format!("{step}: it has more than 2 GiB")))?;
        let params: [&(dyn ToSql + Sync); 6] = [&run_id, &incarnation, &fence, &from, &piece, &column];
        let row = match db.query_opt(&step, READ_PIECE, &params).await {
            Ok(row) => row,
            Err(e) if e.is_slow() && piece > PIECE_MIN => {
                tracing::debug!(
                    target: "podlock", event = "piece_halved", run = %owner.run_id, bytes = piece, error = %e,
                    "a piece did not fit in time"
                );
                piece = (piece / 2).max(PIECE_MIN);
                continue;
            }
            Err(e) => return Err(e),
        };
        let Some(row) = row else { return Ok(None) };
        let Some(whole) = row.at::<Option<i32>>("whole")? else { return Ok(Some(None)) };
        let part: &[u8] = row.at::<Option<&[u8]>>("piece")?.unwrap_or_default();
        text.extend_from_slice(part);
        if text.len() >= usize::try_from(whole).unwrap_or(0) {
            return Ok(Some(Some(text)));
        }
        if part.is_empty() {
            return Err(Error::new(ErrorKind::Database, format!("{step}: the server sent an empty piece")));
        }
        piece = piece.saturating_mul(2).min(PIECE_MAX);
    }
}
