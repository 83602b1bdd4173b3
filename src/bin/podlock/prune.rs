//! `podlock prune`: delete what has ended and is old.

use std::time::Duration;

use podlock::operator::Retention;

use crate::failure::Failure;
use crate::global::Global;
use crate::output::{self, OutputArgs};

#[derive(Debug, clap::Args)]
#[command(after_help = "Durations are written 30d or 12h, from 1h to 365000d. What is not named is kept.")]
pub(crate) struct Args {
    /// Runs that succeeded or were cancelled longer ago than this, with their attempts
    #[arg(long, value_name = "DURATION", value_parser = age)]
    runs_older_than: Option<Duration>,
    /// Runs that failed or were quarantined longer ago than this, with their attempts
    #[arg(long, value_name = "DURATION", value_parser = age)]
    failed_older_than: Option<Duration>,
    /// Events and ended incarnations older than this; a snapshot of the roster stays in place of the events
    #[arg(long, value_name = "DURATION", value_parser = age)]
    events_older_than: Option<Duration>,
    /// Delete nothing: say how much would be deleted
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// The youngest age that may be pruned, as the library demands it.
const AGE_MIN: Duration = Duration::from_secs(3600);
/// The oldest age that may be asked for: a thousand years of 365 days, as the library demands it.
const AGE_MAX: Duration = Duration::from_secs(365_000 * 86_400);

fn age(text: &str) -> Result<Duration, String> {
    let age = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if !(AGE_MIN..=AGE_MAX).contains(&age) {
        return Err("it must be from 1h to 365000d".to_owned());
    }
    Ok(age)
}

pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let mut keep = Retention::new();
    if let Some(time) = args.runs_older_than {
        keep = keep.runs(time);
    }
    if let Some(time) = args.failed_older_than {
        keep = keep.failed_runs(time);
    }
    if let Some(time) = args.events_older_than {
        keep = keep.events(time);
    }
    if keep == Retention::new() {
        let what = "nothing is named: give --runs-older-than, --failed-older-than or --events-older-than";
        return Err(Failure::Usage(what.to_owned()));
    }
    let operator = global.operator().await?;
    let pruned = if args.dry_run { operator.prunable(&keep).await? } else { operator.prune(&keep).await? };
    Ok(output::object(args.output.format, &pruned, |out, pruned| {
        let mut facts = vec![
            ("runs", pruned.runs.to_string()),
            ("events", pruned.events.to_string()),
            ("sessions", pruned.sessions.to_string()),
        ];
        let kept = pruned.kept.iter();
        facts.extend(kept.map(|k| ("kept", format!("{} {}(s), the first {}: {}", k.count, k.what, k.first, k.why))));
        output::facts(out, &facts)
    })?)
}
