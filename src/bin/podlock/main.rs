//! The `podlock` command: the verbs of operators, the reference pod, the demo. One file per verb.
//!
//! Exit codes: 0 success, 1 failure, 2 bad usage; `hold` has its own. Results go to stdout, everything else to stderr.

mod cordon;
mod demo;
mod drain;
mod events;
mod evict;
mod failure;
mod global;
mod history;
mod hold;
mod listen;
mod metrics;
mod migrate;
mod output;
mod pod;
mod pods;
mod probe;
mod prune;
mod runs;
mod serve;
mod signals;
mod workers;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Failure;
use crate::global::Global;

/// A liveness layer for multi-pod services on PostgreSQL.
///
/// When a pod dies, its peers know within milliseconds and resume its runs, each under a fence.
#[derive(Debug, Parser)]
#[command(name = "podlock", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 fine, 1 failed, 2 bad usage; those of `hold` are its own.")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Look at the pods of the roster
    #[command(subcommand)]
    Pods(pods::Verb),
    /// Look at runs, cancel one, start one again, or give a quarantined one another chance
    #[command(subcommand)]
    Runs(runs::Verb),
    /// Look at the workers that the pods have registered
    #[command(subcommand)]
    Workers(workers::Verb),
    /// What is known of a pod's past: how it did, how it ended, how far it can be trusted
    History(history::Args),
    /// How far each pod can be trusted with a long run, best first
    Score(history::ScoreArgs),
    /// The log of the pods' lives
    Events(events::Args),
    /// Ask a pod to stop cleanly: it takes no more work, and a service that listens hands its runs over and ends
    Drain(drain::Args),
    /// Give a pod no new runs: it keeps those that it has
    Cordon(cordon::Args),
    /// Give a cordoned pod runs again
    Uncordon(cordon::Args),
    /// Evict a pod that runs and makes no progress: its runs go on elsewhere
    Evict(evict::Args),
    /// Delete what has ended and is old, as pods do by themselves where their settings say so
    Prune(prune::Args),
    /// Bring podlock's tables up to date, or see how they stand
    #[command(subcommand)]
    Migrate(migrate::Verb),
    /// Run the reference pod, which links the library as any service would
    Pod(Box<pod::Args>),
    /// Serve the liveness history over HTTP, without being a pod
    Serve(Box<serve::Args>),
    /// Hold a pod's lock while a command runs that need not know of podlock
    Hold(Box<hold::Args>),
    #[command(hide = true)]
    HoldSupervisor(hold::SupervisorArgs),
    #[command(hide = true)]
    HoldExec(hold::ExecArgs),
    /// Ask a pod over HTTP how it is, as a container's health check does
    Probe(probe::Args),
    /// See a pod killed and its work go on elsewhere, with a PostgreSQL of its own
    Demo(demo::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Printing can fail only if nobody reads. The exit code still shows the result.
            let _ = error.print();
            if error.kind() == clap::error::ErrorKind::UnknownArgument {
                hold::hint(std::env::args_os());
            }
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    // These parts of `hold` must have only one thread.
    match &cli.verb {
        Verb::HoldSupervisor(args) => return hold::supervise(args),
        Verb::HoldExec(args) => return hold::exec(args),
        _ => {}
    }
    // Done before other threads exist. A process may be started with signals blocked, by a supervisor that forgot to
    // unblock them. It would then never receive them.
    if let Err(error) = nix::sys::signal::SigSet::empty().thread_set_mask() {
        return Failure::Io(error.into()).report();
    }
    let outcome = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(cli));
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Failure::Io(error)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let global = &cli.global;
    match cli.verb {
        Verb::Pods(verb) => pods::run(global, verb).await,
        Verb::Runs(verb) => runs::run(global, verb).await,
        Verb::Workers(verb) => workers::run(global, verb).await,
        Verb::History(args) => history::run(global, args).await,
        Verb::Score(args) => history::score(global, args).await,
        Verb::Events(args) => events::run(global, args).await,
        Verb::Drain(args) => drain::run(global, args).await,
        Verb::Cordon(args) => cordon::cordon(global, args).await,
        Verb::Uncordon(args) => cordon::uncordon(global, args).await,
        Verb::Evict(args) => evict::run(global, args).await,
        Verb::Prune(args) => prune::run(global, args).await,
        Verb::Migrate(verb) => migrate::run(global, verb).await,
        Verb::Pod(args) => pod::run(global, *args).await,
        Verb::Serve(args) => serve::run(global, *args).await,
        Verb::Hold(args) => hold::run(global, *args).await,
        // These verbs returned before the runtime was built.
        Verb::HoldSupervisor(_) | Verb::HoldExec(_) => Ok(()),
        Verb::Probe(args) => probe::run(args).await,
        Verb::Demo(args) => demo::run(global, args).await,
    }
}
