//! `podlock evict`: evict a pod that runs but makes no progress.

use std::io::Write as _;

use serde_json::json;

use crate::failure::Failure;
use crate::global::Global;
use crate::output::{self, OutputArgs};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pod's name
    pod: String,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let incarnation = global.operator().await?.evict(&args.pod).await?;
    let answer = json!({ "pod_id": args.pod, "incarnation": incarnation });
    Ok(output::object(args.output.format, &answer, |out, _| {
        writeln!(
            out,
            "{} ({incarnation}) was evicted: a living peer buries it and takes its runs over; where there is none, the \
             next pod that starts does",
            output::printable(&args.pod)
        )
    })?)
}
