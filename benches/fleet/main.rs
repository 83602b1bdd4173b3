//! `make bench-fleet`: what a fleet of many pods costs its database, and how fast it comes in, finds its dead, and comes
//! back after a restart of the database; beside what another client of the same database sees meanwhile.
//!
//! It prints a table for each size of the fleet and says which goals are met. It asserts nothing, and writes nothing
//! but to a private server that is gone afterwards. The processes with the pods are this very program, started again.

mod bystander;
mod host;
mod hosts;
mod phases;
mod plot;
mod report;
mod server;

use std::error::Error;
use std::time::Duration;

use clap::Parser;
use tokio_postgres::{Client, NoTls};

/// Whatever goes wrong ends the run.
pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(name = "bench-fleet", about = "What many pods cost their database, and how fast they come in and come back")]
struct Args {
    /// The sizes of the fleet, one after another
    #[arg(long, value_delimiter = ',', default_value = "10,50,100,200,500")]
    pods: Vec<usize>,
    /// The lease of the pods
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    lease: Duration,
    /// For how long the fleet is left idle
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    idle: Duration,
    /// How many times one pod is killed
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// How long the whole fleet may take to come in, or to come back
    #[arg(long, default_value = "120s", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// Leave out the phases after this one: boot, idle, kills, tenth, fast, immediate, rolling, stop
    #[arg(long, default_value = "stop")]
    until: phases::Phase,
    /// Print the statements behind the load of each phase
    #[arg(long)]
    statements: bool,
    /// Write the figures of all sizes into this file, as a picture (SVG)
    #[arg(long)]
    plot: Option<std::path::PathBuf>,
    /// What cargo passes to a benchmark. `cargo test --all-targets` does not, and then nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// The part that this program plays when it starts itself. It finds its database in `DATABASE_URL`.
#[derive(clap::Subcommand)]
#[command(hide = true)]
enum Part {
    /// A process with many pods.
    Host {
        #[arg(long, value_parser = humantime::parse_duration)]
        lease: Duration,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match args.part {
        Some(Part::Host { lease }) => runtime.block_on(host::play(&std::env::var("DATABASE_URL")?, lease)),
        None if !args.bench => {
            println!("nothing is measured without --bench: `make bench-fleet` passes it");
            Ok(())
        }
        None => {
            let mut measured = Vec::new();
            for pods in &args.pods {
                let plan = phases::Plan {
                    pods: *pods,
                    lease: args.lease,
                    idle: args.idle,
                    kills: args.kills,
                    patience: args.patience,
                    until: args.until,
                };
                let fleet = runtime.block_on(phases::measure(&plan))?;
                report::fleet(&fleet, args.statements);
                measured.push(fleet);
            }
            report::goals(&measured);
            if let Some(path) = &args.plot {
                plot::write(&measured, path)?;
            }
            Ok(())
        }
    }
}

/// A plain connection, whose driver ends with the runtime or with the server.
pub(crate) async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
