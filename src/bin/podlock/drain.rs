//! `podlock drain`: ask a pod to stop cleanly.

use std::io::Write as _;
use std::time::{Duration, Instant};

use podlock::{Incarnation, Operator};
use serde_json::json;

use crate::failure::Failure;
use crate::global::Global;
use crate::output::{self, OutputArgs};

/// How often to check whether the pod is gone. Each check is one query. A person notices no shorter delay.
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

/// How long both locks of a pod must be free, without a break, before the pod counts as down although its row is still
/// there. Perhaps no other pod is left to bury it. But a pod that only lost its connections is back within moments: its
/// tries to come back are at most a twentieth of its lease apart. So for a long lease, a tenth of the lease applies.
const DOWN: Duration = Duration::from_secs(3);

/// The state of a pod that was asked to drain.
enum DrainStatus {
    Alive,
    /// Neither of its locks is held: it is down, or coming back. `clean`: it had begun to drain.
    Unheld {
        clean: bool,
        down_after: Duration,
    },
    /// It has left the roster.
    Gone {
        clean: bool,
    },
}

pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let operator = global.operator().await?;
    let name = &args.pod;
    // Read before the request: a pod that reacts at once may be down right after it.
    let before = operator.pod(name).await?;
    let unheld = before.filter(|p| p.state != "gone" && !p.alive && !p.witness).map(|p| (p.incarnation, p.runs));
    let incarnation = operator.drain(name).await?;
    let gone = match args.wait {
        Some(most) => {
            until_down(&operator, name, incarnation, most).await?;
            true
        }
        None => match unheld {
            Some((then, runs)) if then == incarnation => {
                return Err(Failure::Failed(format!(
                    "{name:?} ({incarnation}) was asked to drain, but holds neither of its locks: it is down with \
                     {runs} running runs, or on its way back; --wait tells which"
                )));
            }
            _ => false,
        },
    };
    let answer = json!({ "pod_id": name, "incarnation": incarnation, "gone": gone });
    let done = if gone { "has drained and is gone" } else { "was asked to drain" };
    Ok(output::object(args.output.format, &answer, |out, _| {
        writeln!(out, "{} ({incarnation}) {done}", output::printable(name))
    })?)
}

/// The state of the pod, and the number of its running runs.
async fn look(operator: &Operator, pod: &str, incarnation: Incarnation) -> Result<(DrainStatus, i64), Failure> {
    let Some(there) = operator.pod(pod).await? else { return Ok((DrainStatus::Gone { clean: false }, 0)) };
    if there.state != "gone" && there.incarnation == incarnation {
        let held = there.alive || there.witness;
        let lease = there.lease_ms.and_then(|ms| u64::try_from(ms).ok()).map_or(Duration::ZERO, Duration::from_millis);
        let (clean, down_after) = (there.state == "draining", DOWN.max(lease / 10));
        let status = if held { DrainStatus::Alive } else { DrainStatus::Unheld { clean, down_after } };
        return Ok((status, there.runs));
    }
    let session = there.sessions.iter().find(|s| s.incarnation == incarnation);
    Ok((DrainStatus::Gone { clean: session.is_some_and(|s| s.reason.as_deref() == Some("shutdown")) }, 0))
}

/// Resolves when the pod has drained. An error if it ended in another way or is still alive.
async fn until_down(operator: &Operator, pod: &str, incarnation: Incarnation, most: Duration) -> Result<(), Failure> {
    let (mut began, mut unheld_since) = (None, None);
    loop {
        // One reading of the clock for both limits: a pod that never held a lock is down when `most` is over, however
        // long a look takes.
        let looked = Instant::now();
        let waited = looked - *began.get_or_insert(looked);
        let (status, runs) = look(operator, pod, incarnation).await?;
        let clean = match status {
            DrainStatus::Alive => {
                unheld_since = None;
                None
            }
            DrainStatus::Unheld { clean, down_after } => {
                (looked - *unheld_since.get_or_insert(looked) >= down_after.min(most)).then_some(clean)
            }
            DrainStatus::Gone { clean } => Some(clean),
        };
        match clean {
            Some(true) => return Ok(()),
            Some(false) => {
                return Err(Failure::Failed(format!(
                    "{pod:?} ({incarnation}) is dead, and did not drain: it ended with {runs} running runs, which a \
                     peer takes over"
                )));
            }
            None if waited >= most => {
                return Err(Failure::Failed(format!(
                    "{pod:?} was asked to drain, and is still there with {runs} runs after {}",
                    humantime::format_duration(most)
                )));
            }
            None => tokio::time::sleep(LOOK).await,
        }
    }
}
