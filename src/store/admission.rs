//! The slots of a fleet's admission: a few pods at a time do what is dear for the server (`pod::admission`).

use tokio_postgres::types::Type;

use crate::error::Result;
use crate::pg::reply::Reply;
use crate::pg::session::Session;
use crate::pg::statement::sql;
use crate::pg::txn::Param;

/// A slot that a session has taken. It is free again when the session frees it, or ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot(i32);

/// Takes a free slot of `slots`, trying `first` first. `None`: all are taken.
pub(crate) async fn take(session: &Session, slots: i32, first: i32) -> Result<Option<Slot>> {
    const SQL: &str = sql!("take_slot");
    let schema = session.schema().name();
    let params: [Param<'_>; 3] = [(&schema, Type::TEXT), (&slots, Type::INT4), (&first, Type::INT4)];
    let rows = session.query("waiting for its turn to start", SQL, &params).await?;
    rows.first().map(|row| row.at("slot").map(Slot)).transpose()
}

/// Frees a slot.
pub(crate) async fn free(session: &Session, slot: Slot) -> Result<()> {
    const SQL: &str = sql!("free_slot");
    let schema = session.schema().name();
    let params: [Param<'_>; 2] = [(&schema, Type::TEXT), (&slot.0, Type::INT4)];
    session.query("ending its turn to start", SQL, &params).await.map(drop)
}
