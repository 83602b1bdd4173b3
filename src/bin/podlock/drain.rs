//! `podlock drain`: ask a pod to stop cleanly.

use std::io::Write as _;
use std::time::{Duration, Instant};

use podlock::operator::PodDetail;
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

/// How a pod stands that was asked to drain.
enum Standing {
    Alive {
        state: String,
        runs: i64,
    },
    /// Neither of its locks is held. Clean: it had begun to drain. Its row may stay: a survivor takes it away, if there
    /// is one.
    Down {
        clean: bool,
        runs: i64,
    },
}

pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let operator = global.operator().await?;
    let was_down = match operator.pod(&args.pod).await? {
        Some(there) => matches!(standing_of(&there, there.incarnation), Standing::Down { .. }),
        None => false,
    };
    let incarnation = operator.drain(&args.pod).await?;
    let clean = match args.wait {
        Some(most) => Some(until_down(&operator, &args.pod, incarnation, most).await?),
        None if was_down => Some(down(&operator, &args.pod, incarnation).await?),
        None => None,
    };
    if let Some((false, runs)) = clean {
        return Err(Failure::Failed(format!(
            "{:?} ({incarnation}) is dead, and did not drain: it ended with {runs} running runs, which a peer takes over",
            args.pod
        )));
    }
    let answer = json!({ "pod_id": args.pod, "incarnation": incarnation, "gone": clean.is_some() });
    let done = match (clean, was_down) {
        (None, _) => "was asked to drain",
        (Some(_), true) => "had stopped cleanly before",
        (Some(_), false) => "has drained and is gone",
    };
    Ok(output::object(args.output.format, &answer, |out, _| {
        writeln!(out, "{} ({incarnation}) {done}", output::printable(&args.pod))
    })?)
}

fn standing_of(there: &PodDetail, incarnation: Incarnation) -> Standing {
    if there.state != "gone" && there.incarnation == incarnation {
        if there.alive || there.witness {
            return Standing::Alive { state: there.state.clone(), runs: there.runs };
        }
        return Standing::Down { clean: there.state == "draining", runs: there.runs };
    }
    let session = there.sessions.iter().find(|s| s.incarnation == incarnation);
    Standing::Down { clean: session.is_some_and(|s| s.reason.as_deref() == Some("shutdown")), runs: 0 }
}

/// How it ended: cleanly or not, and with how many runs.
async fn down(operator: &Operator, pod: &str, incarnation: Incarnation) -> Result<(bool, i64), Failure> {
    match operator.pod(pod).await?.map(|there| standing_of(&there, incarnation)) {
        Some(Standing::Down { clean, runs }) => Ok((clean, runs)),
        Some(Standing::Alive { .. }) | None => Ok((true, 0)),
    }
}

async fn until_down(
    operator: &Operator,
    pod: &str,
    incarnation: Incarnation,
    most: Duration,
) -> Result<(bool, i64), Failure> {
    let began = Instant::now();
    loop {
        let Some(there) = operator.pod(pod).await? else { return Ok((true, 0)) };
        match standing_of(&there, incarnation) {
            Standing::Down { clean, runs } => return Ok((clean, runs)),
            Standing::Alive { state, runs } if began.elapsed() >= most => {
                return Err(Failure::Failed(format!(
                    "{pod:?} was asked to drain, and is still {state} with {runs} runs after {}",
                    humantime::format_duration(most)
                )));
            }
            Standing::Alive { .. } => tokio::time::sleep(LOOK).await,
        }
    }
}
