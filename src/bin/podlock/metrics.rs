//! `--metrics ADDR`: the metrics as Prometheus text, on a listener of their own.
//!
//! It has no key: whoever reaches the address may read. The text has numbers, the kinds of this pod's handlers and the
//! version, and nothing of any run.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use podlock::http::{not_found, serve};
use podlock::meters;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, note};

/// How often the recorder takes in what histograms collected, if nobody reads. More rarely keeps more values in memory.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long an answer in progress may take when the listener ends.
const LAST_REQUESTS: Duration = Duration::from_secs(1);
/// The most connections. A Prometheus server uses one.
const CONNECTIONS: usize = 16;
/// The version of the text, as Prometheus names it.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How often `--metrics` reads the backlog. Autoscalers look about as often.
pub(crate) const BACKLOG: Duration = Duration::from_secs(15);

/// The listener's task.
pub(crate) struct Listening {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

/// Installs the recorder of this process and serves it at `address`, until [`Listening::end`]. Prints where it listens. Call
/// it before anything that records, and once a process.
pub(crate) async fn listen(address: SocketAddr) -> Result<Listening, Failure> {
    let cannot = |e: &dyn std::fmt::Display| Failure::Failed(format!("cannot serve metrics on {address}: {e}"));
    let listener = TcpListener::bind(address).await.map_err(|e| cannot(&e))?;
    let bound = listener.local_addr()?;
    let builder = PrometheusBuilder::new().set_buckets(meters::BUCKETS).map_err(|e| cannot(&e))?;
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|e| cannot(&e))?;
    meters::describe();
    say_where(bound);
    let stop = CancellationToken::new();
    let task = tokio::spawn(run(listener, handle, stop.clone()));
    Ok(Listening { stop, task })
}

impl Listening {
    /// Takes no more requests, and waits a moment for those in progress.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        if let Err(e) = self.task.await {
            tracing::warn!(
                target: "podlock::pod", event = "metrics_failed", error = %e,
                "metrics were not served to the end"
            );
        }
    }
}

fn router(handle: PrometheusHandle) -> Router {
    let render = move || {
        let text = handle.render();
        async move { ([(CONTENT_TYPE, TEXT)], text) }
    };
    Router::new().route("/metrics", get(render)).fallback(not_found)
}

/// Serves, and keeps the recorder small, until `stop` fires.
async fn run(listener: TcpListener, handle: PrometheusHandle, stop: CancellationToken) {
    let server = serve(listener, router(handle.clone())).with(|limits| limits.connections = CONNECTIONS);
    let upkeep = async {
        loop {
            tokio::time::sleep(UPKEEP).await;
            handle.run_upkeep();
        }
    };
    let served = tokio::select! {
        served = server.until(stop.cancelled_owned(), LAST_REQUESTS) => served,
        () = upkeep => Ok(()),
    };
    if let Err(e) = served {
        tracing::warn!(target: "podlock::pod", event = "metrics_failed", error = %e, "metrics were not served");
    }
}

/// The first line of stdout is the pod's, so this goes to the log, or to stderr if the log hides it.
fn say_where(address: SocketAddr) {
    let text = format!("metrics at http://{address}/metrics");
    if tracing::enabled!(target: "podlock::pod", tracing::Level::INFO) {
        tracing::info!(target: "podlock::pod", event = "metrics_listening", %address, "{text}");
    } else {
        note(&text);
    }
}
