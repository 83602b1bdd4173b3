//! `make bench-workers`: what the registry of workers costs, and how fast it is, beside floors that are taken in the same
//! run: bare SQL, and a scan over a list.
//!
//! Three pods, each with a runtime of its own, share the workers. It prints tables and says which goals are met. It asserts
//! nothing, and writes nothing but to a private server that is gone afterwards. A pod that comes later is this very
//! program, started again, so that its time and its memory are its own.

mod changes;
mod choice;
mod cold;
mod fleet;
mod idle;
mod proxy;
mod report;

use std::error::Error;
use std::time::Duration;

use clap::Parser;
use tokio_postgres::{Client, NoTls};

use report::Report;

/// Whatever goes wrong ends the run.
pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// How long anything may take that is waited for: far more than it ever takes.
pub(crate) const SOON: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, Parser)]
#[command(name = "bench-workers", about = "What the registry of workers costs, and how fast it is")]
pub(crate) struct Args {
    /// How many workers the three pods have together
    #[arg(long, default_value_t = 10_000)]
    pub(crate) workers: usize,
    /// How many bytes of JSON the spec of each has, about
    #[arg(long, default_value_t = 2048)]
    pub(crate) spec_bytes: usize,
    /// How many pods come later and import all workers, one after another
    #[arg(long, default_value_t = 5)]
    pub(crate) newcomers: usize,
    /// How many changes are followed, at rest and again while others flap
    #[arg(long, default_value_t = 300)]
    pub(crate) changes: usize,
    /// The time between two changes at rest. Below about 1.1 s, the pods are still awake from the change before
    #[arg(long, default_value = "1.2s", value_parser = humantime::parse_duration)]
    pub(crate) gap: Duration,
    /// How many workers flap: each changes its health once a second
    #[arg(long, default_value_t = 1000)]
    pub(crate) flapping: usize,
    /// How often a worker is chosen
    #[arg(long, default_value_t = 200_000)]
    pub(crate) choices: u32,
    /// The report interval while the idle pods are counted. Elsewhere it is the default
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    pub(crate) report_interval: Duration,
    /// For how many of these intervals the idle pods are counted
    #[arg(long, default_value_t = 10)]
    pub(crate) intervals: u32,
    /// What cargo passes to a benchmark. `cargo test --all-targets` does not, and then nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// The part that this program plays when it starts itself. It finds its database in `DATABASE_URL`.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(hide = true)]
enum Part {
    /// A pod that comes when the workers are there.
    Newcomer {
        #[arg(long)]
        name: String,
        #[arg(long)]
        expects: usize,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    match &args.part {
        Some(Part::Newcomer { name, expects }) => {
            let url = std::env::var("DATABASE_URL")?;
            fleet::runtime()?.block_on(cold::newcomer(&url, name, *expects))
        }
        None if !args.bench => {
            println!("nothing is measured without --bench: `make bench-workers` passes it");
            Ok(())
        }
        None => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(measure(&args))
        }
    }
}

async fn measure(args: &Args) -> Result<()> {
    let server = tokio::task::spawn_blocking(fleet::server).await??;
    let mut report = Report::new(args);
    report.says(fleet::facts(&server).await?);

    let fleet = fleet::Fleet::start(&server, "workers", args, None).await?;
    cold::measure(&fleet, args, &mut report).await?;
    choice::measure(&fleet, args, &mut report)?;
    changes::measure(&fleet, args, &mut report).await?;
    fleet.stop().await?;

    idle::measure(&server, args, &mut report).await?;
    report.end();
    tokio::task::spawn_blocking(move || drop(server)).await?;
    Ok(())
}

/// A plain connection, whose driver ends with the runtime or with the server.
pub(crate) async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
