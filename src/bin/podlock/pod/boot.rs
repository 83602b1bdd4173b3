//! From nothing to a pod in the roster.

use std::io::{self, Read as _};

use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use podlock::http::not_found;
use podlock::{Config, Pod};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::json;
use tokio::net::TcpListener;

use crate::failure::{Failure, note};
use crate::listen::Server;
use crate::metrics::BACKLOG;
use crate::pod::{Args, kind};
use crate::signals::EndSignals;

/// Ends this process when the other end of stdin is closed. If the kernel supports it, also when the thread that
/// started this process ends, because a stopped process cannot read.
pub(super) fn exit_with_stdin() -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)?;
    std::thread::Builder::new().name("stdin".to_owned()).spawn(|| {
        let mut buffer = [0; 256];
        let mut stdin = io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => break,
                _ => {}
            }
        }
        note("stdin is closed: ending at once");
        std::process::exit(1);
    })?;
    Ok(())
}

/// Starts the pod. That may take as long as a predecessor of the same name takes to die. Meanwhile the probes are
/// answered: alive, not ready. `None`: a signal came first.
pub(super) async fn start(
    listener: &TcpListener,
    args: &Args,
    config: Config,
    signals: &mut EndSignals,
) -> Result<Option<Pod>, Failure> {
    let server = Server::start(another(listener)?, starting(), &args.http);
    let mut builder = Pod::builder(config).handler(kind::NAME, kind::run);
    if args.http.metrics.is_some() {
        builder = builder.report_backlog(BACKLOG);
    }
    let starting = builder.start();
    let pod = tokio::select! {
        pod = starting => pod.map(Some),
        signal = signals.next() => {
            tracing::info!(target: "podlock::pod", event = "stopped", signal, "ended before the pod was registered");
            Ok(None)
        }
    };
    server.end().await;
    Ok(pod?)
}

/// A second handle on the same socket. It stays open when the first server ends, and connections queue.
fn another(listener: &TcpListener) -> io::Result<TcpListener> {
    let descriptor = rustix::io::dup(listener)?;
    TcpListener::from_std(descriptor.into())
}

/// The router that answers until the pod exists.
fn starting() -> Router {
    let not_ready = || async {
        let body = json!({ "error": "this pod is starting: it is not registered yet", "kind": "starting" });
        (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "1")], Json(body))
    };
    Router::new()
        .route("/livez", get(async || Json(json!({ "status": "ok" }))))
        .route("/healthz", get(async || Json(json!({ "phase": "starting", "ready": false }))))
        .route("/readyz", get(not_ready))
        .route("/v1/runs", axum::routing::any(not_ready))
        .route("/v1/runs/{id}", axum::routing::any(not_ready))
        .route("/v1/workers", axum::routing::any(not_ready))
        .route("/v1/workers/{id}", axum::routing::any(not_ready))
        .route("/v1/pods/{*of_a_pod}", axum::routing::any(not_ready))
        .route("/v1/network/{*of_all}", axum::routing::any(not_ready))
        .fallback(not_found)
}
