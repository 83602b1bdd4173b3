//! `podlock drain`: ask a pod to stop cleanly.

use std::io::Write as _;
use std::time::{Duration, Instant};

use podlock::{Incarnation, Operator};
use serde_json::json;

use crate::failure::Failure;
use crate::global::Global;
use crate::output::{self, OutputArgs};

/// How often it is looked at whether the pod is gone.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pod's name
    pod: String,
    /// Wait until it has ended, at most this long [without a value: 60s]
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "60s")]
    #[arg(value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let operator = global.operator().await?;
    let incarnation = operator.drain(&args.pod).await?;
    if let Some(most) = args.wait {
        until_gone(&operator, &args.pod, incarnation, most).await?;
    }
    let answer = json!({ "pod_id": args.pod, "incarnation": incarnation, "gone": args.wait.is_some() });
    let done = if args.wait.is_some() { "has drained and is gone" } else { "was asked to drain" };
    Ok(output::object(args.output.format, &answer, |out, _| {
        writeln!(out, "{} ({incarnation}) {done}", output::printable(&args.pod))
    })?)
}

/// It is gone when both its locks are free. Its row may stay: a survivor takes it away, if there is one.
async fn until_gone(operator: &Operator, pod: &str, incarnation: Incarnation, most: Duration) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        let there = operator.pod(pod).await?;
        let Some(there) = there.filter(|p| p.incarnation == incarnation && (p.alive || p.witness)) else {
            return Ok(());
        };
        if began.elapsed() >= most {
            return Err(Failure::Failed(format!(
                "{pod:?} was asked to drain, and is still {} with {} runs after {}",
                there.state,
                there.runs,
                humantime::format_duration(most)
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}
