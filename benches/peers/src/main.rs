//! `make bench-peers`: podlock beside other job queues on PostgreSQL, in one run: the same trivial jobs through each,
//! and the time from a SIGKILL of a worker until another worker begins its job again. README.md says how.
//!
//! It prints a table in Markdown. It asserts nothing. It writes only to a private server that is gone afterwards.
//! This program is also the worker and the producer of each peer that is written in Rust: see `roles`.

mod child;
mod kill;
mod measure;
mod report;
mod roles;
mod server;
mod system;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use system::{Setting, System};

/// Whatever goes wrong ends what is measured at that moment.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Clone, Parser)]
#[command(name = "bench-peers", about = "podlock beside other job queues on PostgreSQL")]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// How many jobs go through each system in each phase
    #[arg(long, default_value_t = 20_000)]
    jobs: u64,
    /// How often each throughput is measured, in turns; the table has the medians
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many seconds a worker may take for the jobs of a phase. After that, the rate is that of the jobs that ended
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    phase_limit: u64,
    /// How often a worker of each system is killed. Only once if the job does not begin again in time
    #[arg(long, default_value_t = 5)]
    kills: usize,
    /// How many seconds after a kill the job may take to begin again
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    limit: u64,
    /// How many seconds the second worker has been up when the first one is killed. If that is less than podlock's
    /// `settle`, 10 s by default, a burial may have to wait for the rest of it
    #[arg(long, default_value_t = 12, value_name = "SECONDS")]
    warm: u64,
    /// Only these systems
    #[arg(long, value_delimiter = ',')]
    only: Vec<System>,
    /// Only this setting
    #[arg(long)]
    setting: Option<Setting>,
    /// Let the server answer a COMMIT before the data is on the disk (fsync = off)
    #[arg(long)]
    no_fsync: bool,
    /// The Python that has procrastinate and PgQueuer; `scripts/ensure-peers.sh` makes it
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
}

#[derive(Clone, Subcommand)]
enum Role {
    /// One process of a peer; the benchmark starts it
    #[command(hide = true)]
    Role(roles::Task),
}

impl Args {
    pub(crate) fn limit(&self) -> Duration {
        Duration::from_secs(self.limit)
    }

    pub(crate) fn warm(&self) -> Duration {
        Duration::from_secs(self.warm)
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match &args.role {
        Some(Role::Role(task)) => runtime.block_on(roles::play(task.clone())),
        None => runtime.block_on(bench(&args)),
    }
}

async fn bench(args: &Args) -> Result<()> {
    let mut candidates = Vec::new();
    for system in System::ALL {
        if !args.only.is_empty() && !args.only.contains(&system) {
            continue;
        }
        match system.missing(args.python.as_deref()) {
            Some(reason) => println!("{system}: skipped: {reason}"),
            None => candidates.extend(Setting::ALL.map(|setting| (system, setting))),
        }
    }
    candidates.retain(|(_, setting)| args.setting.is_none_or(|only| only == *setting));
    let server = server::Server::start(!args.no_fsync).await?;
    report::head(args, &server).await?;
    let mut rows: Vec<report::Row> =
        candidates.iter().map(|&(system, setting)| report::Row::new(system, setting)).collect();
    for round in 0..args.rounds {
        for row in &mut rows {
            match measure::throughput(args, &server, row.system, row.setting, round).await {
                Ok(figures) => row.rounds.push(figures),
                Err(e) => row.failed(&e),
            }
            eprintln!("round {} of {}: {}", round + 1, args.rounds, row.progress());
        }
    }
    for row in rows.iter_mut().filter(|row| row.system.can_be_killed()) {
        for _ in 0..args.kills {
            match kill::one(args, &server, row.system, row.setting, row.kills.len()).await {
                Ok(again) => row.kills.push(again),
                Err(e) => row.failed(&e),
            }
            eprintln!("{} {}: killed: {:?}", row.system, row.setting, row.kills.last());
            // A job that does not begin again would not do so the next time either.
            if !matches!(row.kills.last(), Some(Some(_))) {
                break;
            }
        }
    }
    report::print(args, &rows);
    Ok(())
}
