//! `podlock demo`: a pod is killed, and its work continues on another pod. Real processes, a real server, real signals.
//!
//! The demo measures times on its own monotonic clock. They begin just before the signal is sent. One ends when the
//! server's notification of the burial arrives here. The other ends when the log of a surviving pod says that it
//! executes the run again.

mod board;
mod checks;
mod fleet;
mod report;
mod screen;
mod stage;
mod story;

use std::time::Duration;

use clap::ValueEnum;

use crate::failure::Failure;
use crate::global::Global;
use crate::output::Format;
use crate::signals::EndSignals;
use stage::Stage;

/// How the pod that owns most is struck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fate {
    /// SIGKILL: it dies at once and says nothing
    #[default]
    Kill,
    /// SIGTERM: it hands its runs over and ends cleanly
    Term,
    /// SIGSTOP: it freezes, its connections stay open, and only the lease tells; it is woken afterwards
    Stop,
}

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = include_str!("help.txt").trim_end())]
pub(crate) struct Args {
    /// How many pods
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=20))]
    pods: u8,
    /// How many runs
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=500))]
    runs: u16,
    /// How the pod that owns most is struck
    #[arg(long, value_enum, default_value_t)]
    kill: Fate,
    /// How many chunks each run makes
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    chunks: u32,
    /// How long a chunk takes
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = humantime::parse_duration)]
    delay: Duration,
    /// How long the server lets a silent pod live
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = crate::pod::lease)]
    lease: Duration,
    /// `json` prints what was measured on stdout and the story on stderr
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value_t)]
    format: Format,
}

pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    if args.delay > Duration::from_secs(600) {
        return Err(Failure::Usage("--delay can be 600s at most".to_owned()));
    }
    // From here on, a signal does not end this process by itself. The demo first ends everything that it began.
    let mut signals = EndSignals::listen()?;
    let mut stage = Stage::new(global.url());
    let outcome = tokio::select! {
        outcome = story::tell(&mut stage, &args) => outcome,
        signal = signals.next() => Err(Failure::Failed(format!("{signal}: the demo was broken off"))),
    };
    stage.clear().await;
    outcome
}
