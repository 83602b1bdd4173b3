//! Opens connections for the service, as podlock opens its own.

use futures_util::future::BoxFuture;
use tokio_postgres::Client;

use crate::config::Config;
use crate::error::{Result, chain};
use crate::pg::conninfo::Target;
use crate::pg::dial::Dialer;
use crate::pg::errors;
use crate::pg::reply::Reply;
use crate::store::connections;

/// Opens a connection for the service's own statements, with the settings with which pods connect. It honours libpq's
/// words and variables, `sslmode` and its certificates, and passwords. Among several hosts it uses the primary. The
/// time-out covers the whole handshake. [`tokio_postgres::connect`] alone has no TLS and few of these.
///
/// No setting is made on the session: its time-outs and `search_path` are the role's. The connection ends when the
/// client is dropped. Call this inside a tokio runtime, which then drives the connection.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let mut db = podlock::connect(&podlock::Config::from_env()?).await?;
/// let txn = db.transaction().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`ErrorKind::Config`](crate::ErrorKind::Config), or the reason why it could not connect, as for
/// [`Pod`](crate::Pod)'s start.
///
/// # Cancel safety
///
/// Safe: a connection that was being made is closed.
pub async fn connect(config: &Config) -> Result<Client> {
    let settings = config.validate()?;
    let dialer = connections::dialer(config, &settings)?;
    let mut attempts = dialer.attempts();
    while let Some(target) = attempts.next() {
        // Boxed because its type is deep.
        let opening: BoxFuture<'_, _> = Box::pin(open(&dialer, target, settings.statement_timeout));
        if let Some(client) = attempts.ended(opening.await) {
            return Ok(client);
        }
    }
    Err(attempts.give_up())
}

async fn open(dialer: &Dialer, target: &Target, limit: std::time::Duration) -> Result<Client> {
    let dialled = dialer.dial(target, dialer.application_name().unwrap_or_default()).await?;
    let connection = dialled.connection;
    tokio::spawn(async move {
        if let Err(e) = connection.await {
            tracing::debug!(target: "podlock", cause = %chain(&e), "a connection of the service ended");
        }
    });
    let step = format!("asking {target} whether it is a standby");
    let sql = "SELECT pg_catalog.pg_is_in_recovery()";
    let answer = errors::within(&step, limit, dialled.client.query_one(sql, &[])).await?;
    if answer.at(0)? { Err(errors::standby(target)) } else { Ok(dialled.client) }
}
