//! `podlock cordon` and `podlock uncordon`: give a pod no new runs, or give it runs again.

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

pub(crate) async fn cordon(global: &Global, args: Args) -> Result<(), Failure> {
    let incarnation = global.operator().await?.cordon(&args.pod).await?;
    let answer = json!({ "pod_id": args.pod, "incarnation": incarnation, "cordoned": true });
    Ok(output::object(args.output.format, &answer, |out, _| {
        let name = output::printable(&args.pod);
        writeln!(
            out,
            "{name} ({incarnation}) is cordoned: it keeps its runs and gets no new ones, until `podlock uncordon {name}` \
             or the end of its process"
        )
    })?)
}

pub(crate) async fn uncordon(global: &Global, args: Args) -> Result<(), Failure> {
    let incarnation = global.operator().await?.uncordon(&args.pod).await?;
    let answer = json!({ "pod_id": args.pod, "incarnation": incarnation, "cordoned": false });
    Ok(output::object(args.output.format, &answer, |out, _| {
        writeln!(out, "{} ({incarnation}) is not cordoned: it gets runs again", output::printable(&args.pod))
    })?)
}
