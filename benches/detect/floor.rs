//! The floor: what PostgreSQL and the kernel take for the same thing without podlock. A pod is killed that nobody of
//! podlock's watches; bare SQL waits for the same lock, is granted it, deletes one row and commits.
//!
//! The victim is a pod like the others, in a schema of its own, so that both pay for the end of such a process and of
//! its backends. It has no watch session: that of a pod in the ring waits for a lock, and does not end with its
//! process. The waiter is as bare as it can be: one connection, no transaction block, statements prepared, one round
//! trip from the grant to the commit. podlock must also prove that it lives, look at the whole roster and write a
//! history.

use tokio::sync::mpsc;

use crate::process::{Says, listen, say};
use crate::{Result, connect};

/// Creates what the floor needs.
pub(crate) const SCHEMA: &str = "CREATE TABLE floor (id bigint PRIMARY KEY)";

/// Where the floor's pod is alone.
pub(crate) const POD_SCHEMA: &str = "alone";
/// Its name.
pub(crate) const POD: &str = "floor";

/// Waits for each lock that it is told of, and deletes the row that comes with it.
pub(crate) async fn wait(url: &str) -> Result<()> {
    let (keys, mut told) = mpsc::unbounded_channel();
    // The process is told on stdin, and ends with it.
    listen(move |line| {
        if let Some((lock, row)) = line.split_once(' ')
            && let (Ok(lock), Ok(row)) = (lock.parse::<i64>(), row.parse::<i64>())
        {
            // Nobody listens only when everything ends.
            let _ = keys.send((lock, row));
        }
    })?;
    let client = connect(url).await?;
    let lock = client.prepare("SELECT pg_advisory_lock($1)").await?;
    let delete = client.prepare("DELETE FROM floor WHERE id = $1").await?;
    let unlock = client.prepare("SELECT pg_advisory_unlock($1)").await?;
    say(&Says::Ready { incarnation: None })?;
    while let Some((key, row)) = told.recv().await {
        client.query_one(&lock, &[&key]).await?;
        client.execute(&delete, &[&row]).await?;
        client.query_one(&unlock, &[&key]).await?;
    }
    Ok(())
}
