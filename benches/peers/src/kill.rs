//! How long after the SIGKILL of a worker another one begins its job again.

use std::time::Duration;

use crate::child::SOON;
use crate::measure::Bench;
use crate::roles::Part;
use crate::server::Server;
use crate::system::{Setting, System};
use crate::{Args, Result};

/// Kills the worker that executes the only job. `None` if the job did not begin again in time.
pub(crate) async fn one(
    args: &Args,
    server: &Server,
    system: System,
    setting: Setting,
    number: usize,
) -> Result<Option<Duration>> {
    let bench = Bench { args, server, system, setting };
    let database = bench.database(&format!("kill_{number}")).await?;
    let mut first = bench.child(Part::Hold, &database, 1).await?;
    first.go().await?;
    let mut producer = bench.child(Part::Enqueue, &database, 1).await?;
    producer.go().await?;
    producer.reaches("done", SOON).await?;
    producer.end().await?;
    first.reaches("began", SOON).await?;
    let mut second = bench.child(Part::Hold, &database, 1).await?;
    second.go().await?;
    // If the job begins on the second worker while the first one lives, the time below would mean nothing.
    if second.reaches("began", args.warm()).await.is_ok() {
        return Err(format!("{system} {setting}: a second worker began the job of a living one").into());
    }
    let killed = first.kill().await?;
    let again = second.reaches("began", args.limit()).await.ok().map(|began| began - killed);
    second.kill().await?;
    server.drop(database).await?;
    Ok(again)
}
