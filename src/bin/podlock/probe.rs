//! `podlock probe`: ask a pod over HTTP for its health, for callers that can only run a command, such as a container's
//! health check. An image that contains only this program has no other client.

use std::error::Error as _;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{StatusCode, Url};

use crate::failure::Failure;
use crate::output;

#[derive(Debug, clap::Args)]
#[command(after_help = "Prints the answer. Ends with 0 if its status is a 2xx, else with 1.")]
pub(crate) struct Args {
    /// What to ask, as http://127.0.0.1:8080/readyz
    url: Url,
    /// How long the whole answer may take
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let url = &args.url;
    let (status, body) = ask(&args).await.map_err(|error| Failure::Failed(format!("{url}: {}", in_words(error))))?;
    if status.is_success() {
        return Ok(output::line(&output::printable_lines(body.trim_end()))?);
    }
    Err(Failure::Failed(format!("{url} answered {status}: {}", body.trim_end())))
}

/// Neither a proxy nor a redirect may answer instead of the pod.
async fn ask(args: &Args) -> Result<(StatusCode, String), reqwest::Error> {
    let client = reqwest::Client::builder().no_proxy().redirect(Policy::none()).timeout(args.timeout).build()?;
    let response = client.get(args.url.clone()).send().await?;
    let status = response.status();
    Ok((status, response.text().await?))
}

/// The error and its causes. The first text alone says only that the request failed, not that nothing listens.
fn in_words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
