//! `make bench-detect`: how long a killed pod stays in the roster and how soon its runs go on elsewhere, beside a floor
//! that is taken in the same run; and what a fleet costs while nothing happens.
//!
//! It prints tables and says which goals are met. It asserts nothing, and writes nothing but to a private server that
//! is gone afterwards. The pods and the floor's waiter are this very program, started again.

mod busy;
mod clock;
mod floor;
mod idle;
mod kills;
mod observer;
mod pod;
mod process;
mod report;
mod ring;

use std::error::Error;
use std::time::Duration;

use clap::Parser;
use tokio_postgres::{Client, NoTls};

/// Whatever goes wrong ends the run.
pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

#[derive(Parser)]
#[command(name = "bench-detect", about = "How fast a death is noticed, beside the floor of bare SQL")]
struct Args {
    /// How many pods to kill, half of them beside a settled neighbour, and as many for the floor
    #[arg(long, default_value_t = 200)]
    kills: usize,
    /// For how many seconds three pods are left idle; 0 leaves this part out
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// The lease of the pods that are killed
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    lease: Duration,
    /// How many runs a pod has when it is killed
    #[arg(long, default_value_t = 4)]
    runs: usize,
    #[command(flatten)]
    busy: busy::Busy,
    /// What cargo passes to a benchmark. `cargo test --all-targets` does not, and then nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// The parts that this program plays when it starts itself. Each finds its database in `DATABASE_URL`.
#[derive(clap::Subcommand)]
#[command(hide = true)]
enum Part {
    /// A pod, as a service would have it.
    Pod {
        #[arg(long)]
        name: String,
        #[arg(long)]
        schema: String,
        #[arg(long, value_parser = humantime::parse_duration)]
        lease: Duration,
        #[arg(long)]
        runs: usize,
    },
    /// The bare waiter.
    Waiter,
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.part {
        // As a service has it: a runtime with a thread for each core.
        Some(part) => tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(play(part)),
        None if !args.bench => {
            println!("nothing is measured without --bench: `make bench-detect` passes it");
            Ok(())
        }
        None => tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(args)),
    }
}

async fn play(part: Part) -> Result<()> {
    let url = std::env::var("DATABASE_URL")?;
    match part {
        Part::Pod { name, schema, lease, runs } => {
            process::listen(|_| {})?;
            pod::play(&url, &name, &schema, lease, runs).await
        }
        Part::Waiter => floor::wait(&url).await,
    }
}

async fn measure(args: Args) -> Result<()> {
    if args.kills > 0 {
        let plan = kills::Plan { kills: args.kills, lease: args.lease, runs: args.runs, busy: args.busy };
        report::kills(&kills::measure(&plan).await?);
    }
    if args.idle > 0 {
        report::idle(&idle::measure(Duration::from_secs(args.idle)).await?);
    }
    Ok(())
}

/// A plain connection, whose driver ends with the runtime.
pub(crate) async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(async move {
        if let Err(e) = connection.await {
            eprintln!("bench-detect: a connection ended: {e}");
        }
    });
    Ok(client)
}
