//! A gateway over the workers of all pods. Each pod registers two workers of its own (small HTTP servers in its process),
//! and answers `GET /ask` by a worker of any pod. A pod that is killed takes its workers along, and no request is lost.
//!
//! ```sh
//! export DATABASE_URL=postgres://app@localhost/app              # any PostgreSQL 14 or newer
//! POD_NAME=a cargo run --features http --example gateway &      # prints the address of its gateway
//! POD_NAME=b cargo run --features http --example gateway &
//! POD_NAME=c cargo run --features http --example gateway &
//! curl http://127.0.0.1:…/ask                                   # kill -9 one of the others meanwhile
//! ```

use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use podlock::http::{not_found, serve};
use podlock::workers::{Filter, HealthCheck, Lease, NewWorker, WorkerSpec, Workers};
use podlock::{Config, HandlerError, Pod, PodEvent};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const GRACE: Duration = Duration::from_secs(20);
const A_TRY: Duration = Duration::from_secs(5); // a worker that hangs: the next one is tried
const A_REQUEST: Duration = Duration::from_secs(30); // after that the client hears that nobody answered

#[tokio::main]
async fn main() -> Result<(), HandlerError> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let pod = Pod::builder(Config::from_env()?).stop_on_signals().start().await?;
    tokio::spawn(tell(pod.events()));
    for n in 1..=2 {
        let name = format!("{}-{n}", pod.pod_id());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let new = NewWorker::new(format!("http://{}", listener.local_addr()?))
            .spec(WorkerSpec::new().kind("upstream").label("name", &*name))
            .health_check(HealthCheck::http("/health").interval(Duration::from_secs(1)));
        tokio::spawn(serve(listener, upstream(name)).until(closed(pod.clone()), Duration::ZERO));
        pod.workers().register_or_replace(new)?;
    }
    pod.workers().ready().await;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("gateway {} listening on http://{}", pod.pod_id(), listener.local_addr()?);
    let http = reqwest::Client::builder().no_proxy().timeout(A_TRY).build()?;
    let router = Router::new().route("/ask", get(ask)).with_state((pod.workers(), http)).fallback(not_found);
    let gateway = tokio::spawn(serve(listener, router).until(closed(pod.clone()), Duration::from_secs(1)));
    pod.until_stopped(GRACE).await?;
    gateway.await??;
    Ok(())
}

async fn closed(pod: Pod) {
    pod.closed().await;
}

/// What a worker does: here, it says who it is, after a little work.
fn upstream(name: String) -> Router {
    let work = async move || {
        tokio::time::sleep(Duration::from_millis(5)).await;
        name
    };
    Router::new().route("/health", get(async || "well")).route("/work", get(work)).fallback(not_found)
}

/// Answers by the least busy worker of the fleet. A worker whose connection fails may have died just now, before this
/// pod heard of it: the request goes to another one. A request that must not be done twice needs more than that.
async fn ask(State((workers, http)): State<(Workers, reqwest::Client)>) -> Response {
    let (began, upstreams) = (Instant::now(), Filter::new().kind("upstream"));
    // Those that failed count as busy until the end of the request, so others come first.
    let mut tried: Vec<Lease> = Vec::new();
    while began.elapsed() < A_REQUEST {
        let Some(lease) = workers.available(&upstreams).least_in_flight() else {
            tokio::time::sleep(Duration::from_millis(20)).await; // none is ready yet
            continue;
        };
        let answer = work(&http, lease.url()).await;
        tried.push(lease);
        match answer {
            Ok(answer) => return Json(json!({ "answer": answer, "pods": pods(&tried) })).into_response(),
            Err(e) => tracing::info!(pods = %pods(&tried), error = %e, "tried in vain, and going on"),
        }
    }
    (StatusCode::SERVICE_UNAVAILABLE, "no worker answered").into_response()
}

async fn work(http: &reqwest::Client, url: &str) -> reqwest::Result<String> {
    http.get(format!("{url}/work")).send().await?.error_for_status()?.text().await
}

/// The pods whose workers were tried, the last one with success.
fn pods(tried: &[Lease]) -> Value {
    tried.iter().map(|lease| lease.worker().owner_pod().to_string()).collect()
}

/// Says which burials this pod has heard of. Its workers were taken out of every choice before.
async fn tell(mut events: tokio::sync::broadcast::Receiver<PodEvent>) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        match events.recv().await {
            Ok(PodEvent::Buried { pod, .. }) => tracing::info!(%pod, "heard of the burial"),
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}
