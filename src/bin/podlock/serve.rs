//! `podlock serve`: the liveness history over HTTP, from a process that is no pod. It needs no lock, no name and no place
//! in the roster. So it answers while no pod lives.

use std::convert::Infallible;

use podlock::Operator;
use podlock::http::{liveness_router, not_found, operator_probes};

use crate::failure::Failure;
use crate::global::Global;
use crate::listen::{HttpArgs, Server};
use crate::metrics::BACKLOG;
use crate::output;
use crate::pod::logs::LogArgs;
use crate::signals::EndSignals;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Every route but the probes and /v1/openapi.json needs `Authorization: Bearer KEY` with the admin \
                        key. Ends with 0 on SIGTERM, SIGINT or SIGHUP."
)]
pub(crate) struct Args {
    #[command(flatten)]
    http: HttpArgs,
    #[command(flatten)]
    logs: LogArgs,
}

pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    args.logs.start("info")?;
    let mut signals = EndSignals::listen()?;
    let key = args.http.key()?;
    let listener = args.http.bind().await?;
    let metrics = args.http.metrics().await?;
    let address = listener.local_addr()?;
    let operator = tokio::select! {
        operator = global.operator() => operator?,
        _ = signals.next() => return Ok(()),
    };
    let router = liveness_router(operator.clone(), key).merge(operator_probes(operator.clone())).fallback(not_found);
    let server = Server::start(listener, router, &args.http);
    // The program that started this process may not read it.
    let _ = output::line(&format!("podlock serve listening on http://{address}"));
    let signal = tokio::select! {
        signal = signals.next() => signal,
        never = report_backlog(&operator), if metrics.is_some() => match never {},
    };
    tracing::info!(target: "podlock::serve", event = "stopping", signal, "ending");
    server.end().await;
    if let Some(metrics) = metrics {
        metrics.end().await;
    }
    Ok(())
}

/// Sets the metrics of the backlog now and then.
async fn report_backlog(operator: &Operator) -> Infallible {
    loop {
        if let Err(error) = operator.record_backlog().await {
            tracing::warn!(
                target: "podlock::serve", event = "backlog_unread", error = %error,
                "the backlog cannot be read, so its metrics are old; the next read comes"
            );
        }
        tokio::time::sleep(BACKLOG).await;
    }
}
