//! The floor: what PostgreSQL and the kernel take for the same thing without podlock. A process that holds a session
//! advisory lock is killed; another, which waits for that lock, is granted it, deletes one row and commits.
//!
//! It is as bare as it can be: one connection each, no transaction block, statements prepared, one round trip from
//! the grant to the commit. podlock must also prove that it lives, look at the whole roster and write a history.

use tokio::sync::mpsc;

use crate::process::{Says, listen, say};
use crate::{Result, connect};

/// Creates what the floor needs.
pub(crate) const SCHEMA: &str = "CREATE TABLE floor (id bigint PRIMARY KEY)";

/// Holds the lock and has a row, until it is killed.
pub(crate) async fn hold(url: &str, key: i64) -> Result<()> {
    let client = connect(url).await?;
    client.execute("SELECT pg_advisory_lock($1)", &[&key]).await?;
    client.execute("INSERT INTO floor VALUES ($1)", &[&key]).await?;
    say(&Says::Ready { incarnation: None })?;
    std::future::pending().await
}

/// Waits for each lock that it is told of, and deletes its row.
pub(crate) async fn wait(url: &str) -> Result<()> {
    let (keys, mut told) = mpsc::unbounded_channel();
    // The process is told on stdin, and ends with it.
    listen(move |line| _ = line.parse::<i64>().map(|key| keys.send(key)))?;
    let client = connect(url).await?;
    let lock = client.prepare("SELECT pg_advisory_lock($1)").await?;
    let delete = client.prepare("DELETE FROM floor WHERE id = $1").await?;
    let unlock = client.prepare("SELECT pg_advisory_unlock($1)").await?;
    say(&Says::Ready { incarnation: None })?;
    while let Some(key) = told.recv().await {
        client.query_one(&lock, &[&key]).await?;
        client.execute(&delete, &[&key]).await?;
        client.query_one(&unlock, &[&key]).await?;
    }
    Ok(())
}
