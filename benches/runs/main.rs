//! `make bench-runs`: how many runs a second a pod starts, checkpoints and ends, and how long each write takes, beside
//! floors on the same server in the same run: the same writes by hand, one by one, and in statements of many rows.
//!
//! It prints tables and says which goals are met. It asserts nothing, and writes nothing but to private servers that
//! are gone afterwards. A second pod is this very program, started again, so that its time and its memory are its own.

mod alive;
mod alone;
mod by_hand;
mod counts;
mod floors;
mod latency;
mod other;
mod pace;
mod phases;
mod report;
mod stage;

use std::error::Error;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tokio_postgres::{Client, NoTls};

use report::Report;
use stage::Stage;

/// Whatever goes wrong ends the run.
pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// How long anything may take that is waited for: far more than it ever takes.
pub(crate) const SOON: Duration = Duration::from_secs(120);
/// How long each load runs before it is measured.
pub(crate) const WARM_UP: Duration = Duration::from_millis(700);

#[derive(Clone, Debug, Parser)]
#[command(name = "bench-runs", about = "How many runs a second a pod starts and ends, beside the same writes by hand")]
pub(crate) struct Args {
    /// What is measured, in this order
    #[arg(long, value_delimiter = ',', default_value = "trivial,checkpoints,submits,alive,latency")]
    phases: Vec<Phase>,
    /// For how many seconds each rate and each latency is measured
    #[arg(long, default_value_t = 2.5)]
    seconds: f64,
    /// Whether the server waits for the disk at each commit; a server for each
    #[arg(long, value_delimiter = ',', default_value = "on,slow,off")]
    fsync: Vec<Fsync>,
    /// How many callers start runs at once
    #[arg(long, value_delimiter = ',', default_value = "1,8,64,512")]
    pub(crate) callers: Vec<usize>,
    /// How many runs are alive at once
    #[arg(long, default_value_t = 10_000)]
    pub(crate) alive: usize,
    /// What cargo passes to a benchmark. `cargo test --all-targets` does not, and then nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<other::Part>,
}

impl Args {
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Phase {
    /// Runs that end as soon as they have begun.
    Trivial,
    /// Runs that save ten checkpoints.
    Checkpoints,
    /// Runs that one pod submits, and another executes.
    Submits,
    /// Many runs that wait.
    Alive,
    /// How long a start, a checkpoint and an end take, alone and under load.
    Latency,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fsync {
    On,
    /// On, and each flush takes a millisecond longer, as on a slower disk.
    Slow,
    Off,
}

impl Fsync {
    /// The word of the command line.
    pub(crate) fn word(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(part) = &args.part {
        return other::play(part);
    }
    if !args.bench {
        println!("nothing is measured without --bench: `make bench-runs` passes it");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // As a task, because a future on the main thread is woken from another thread each time.
    runtime.block_on(async { tokio::spawn(measure(args)).await? })
}

async fn measure(args: Args) -> Result<()> {
    let args = &args;
    let mut report = Report::default();
    for fsync in &args.fsync {
        let stage = Stage::start(*fsync).await?;
        report.begins(&stage);
        let mut peak = None;
        for phase in &args.phases {
            stage.recycle_log_files().await?;
            match phase {
                Phase::Trivial => peak = Some(phases::trivial(&stage, args, &mut report).await?),
                Phase::Checkpoints => phases::checkpoints(&stage, args, &mut report).await?,
                Phase::Submits => phases::submits(&stage, args, &mut report).await?,
                Phase::Alive => alive::measure(&stage, args, &mut report).await?,
                Phase::Latency => {
                    let peak = match peak {
                        Some(peak) => peak,
                        None => phases::peak(&stage, args).await?,
                    };
                    latency::measure(&stage, args, peak, &mut report).await?;
                }
            }
        }
        stage.stop().await?;
    }
    report.end();
    Ok(())
}

/// A plain connection, whose driver ends with the runtime or with the server.
pub(crate) async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
