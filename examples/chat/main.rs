//! A chat service of three pods whose answers survive them: a page asks, a pod streams the answer of a (mock) model,
//! and the page can kill that pod in the middle of it. Another one answers, and the page shows one whole answer, once.
//!
//! ```sh
//! cargo run --example chat --all-features        # then open the address that it prints
//! ```
//!
//! It brings its own PostgreSQL. The pods are this program, started again; all listen on one port, as behind a load
//! balancer, so that a page whose pod has gone comes back to another by itself. A pod that ended is started anew after
//! a while, as a deployment would.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{Stream, StreamExt, stream};
use podlock::operator::PodFilter;
use podlock::throwaway::Server;
use podlock::{Config, HandlerError, NewRun, Outcome, Pod, Run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

const PODS: [&str; 3] = ["chat-0", "chat-1", "chat-2"];
const LEASE: Duration = Duration::from_secs(3);
/// How long a deployment takes to start a pod anew.
const RESTART: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<(), HandlerError> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match std::env::var("CHAT_LISTEN") {
        Ok(address) => serve(address.parse()?).await,
        Err(_) => deploy(std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned()).parse()?).await,
    }
}

/// A pod: answers questions, and serves the page.
async fn serve(address: SocketAddr) -> Result<(), HandlerError> {
    let mut sigterm = signal(SignalKind::terminate())?;
    let config = Config::from_env()?.lease(LEASE).label("pid", std::process::id().to_string());
    let pod = Pod::builder(config).handler("answer", answer).start().await?;
    let router = Router::new()
        .route("/", get(async || Html(include_str!("page.html"))))
        .route("/ask", post(ask))
        .route("/kill/{pod}", post(kill))
        .with_state(pod.clone())
        .merge(podlock::http::router(pod.clone()));
    let server = podlock::http::serve(shared_listener(address)?, router);
    tokio::select! {
        ended = server => ended?,
        _ = sigterm.recv() => {}
        () = pod.closed() => {}
    }
    pod.shutdown(Duration::from_secs(5)).await?;
    Ok(())
}

/// One answer. A model cannot go on in the middle of another's sentence, so a later attempt begins it anew: what was
/// said before is taken back when its first word is appended, and whoever listens is told.
async fn answer(run: Run) -> Result<Outcome, HandlerError> {
    let question = run.input().as_str().ok_or("a question is a text")?.to_owned();
    let mut words = std::pin::pin!(model(&question));
    let mut whole = String::new();
    loop {
        tokio::select! {
            // Draining: the next pod begins the answer anew at once, instead of when this one has ended.
            _ = run.stopped() => return Ok(Outcome::Yield),
            word = words.next() => match word {
                Some(word) => {
                    run.append(word.as_str()).await?;
                    whole.push_str(&word);
                }
                None => return Ok(Outcome::Done(json!(whole))),
            }
        }
    }
}

/// Stands for a language model: it says its words one by one.
fn model(question: &str) -> impl Stream<Item = String> + use<> {
    let said = format!(
        "You ask: {question} Let me think. A pod that answers you may be killed at any moment: it runs out of memory, \
         its node goes, somebody deploys. Its lock in the database is then free within milliseconds, a neighbour that \
         waited for that lock buries it, and one of the living takes its runs over, under a new fence. What the dead \
         one said is taken back, so that you read one answer and not two halves. Even if it were only frozen, and woke \
         up now, nothing that it says would be accepted any more. That is the whole of my answer."
    );
    let words: Vec<String> = said.split_inclusive(' ').map(str::to_owned).collect();
    stream::iter(words).then(async |word| {
        tokio::time::sleep(Duration::from_millis(60)).await;
        word
    })
}

async fn ask(State(pod): State<Pod>, question: String) -> Result<Json<Value>, (StatusCode, String)> {
    let started = pod.start(NewRun::new("answer").input(question)).await;
    let started = started.map_err(|e| (StatusCode::SERVICE_UNAVAILABLE, e.to_string()))?;
    Ok(Json(json!({ "run_id": started.run_id })))
}

/// Kills the process of a pod, whichever pod is asked.
async fn kill(State(pod): State<Pod>, Path(name): Path<String>) -> Result<String, (StatusCode, String)> {
    let failed = |e: String| (StatusCode::INTERNAL_SERVER_ERROR, e);
    let pods = pod.operator().pods(PodFilter::new()).await.map_err(|e| failed(e.to_string()))?;
    let pid = pods.iter().find(|p| p.pod_id == name).and_then(|p| p.labels["pid"].as_str()?.parse().ok());
    let pid = pid.and_then(Pid::from_raw).ok_or((StatusCode::NOT_FOUND, format!("there is no pod {name}")))?;
    kill_process(pid, Signal::KILL).map_err(|e| failed(e.to_string()))?;
    Ok(format!("pod {name} was killed\n"))
}

/// Several processes listen on the same port, and the kernel hands each connection to one of those that live.
fn shared_listener(address: SocketAddr) -> std::io::Result<tokio::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    tokio::net::TcpListener::from_std(socket.into())
}

/// The database and the pods, until Ctrl-C or SIGTERM.
async fn deploy(address: SocketAddr) -> Result<(), HandlerError> {
    let mut sigterm = signal(SignalKind::terminate())?;
    let server = tokio::task::spawn_blocking(|| Server::builder().start()).await??;
    let url = server.url("postgres");
    podlock::migrate::up(&Config::new(&url)).await?;
    // Port 0 is a free one, which has to be the same for all.
    let placeholder = shared_listener(address)?;
    let address = placeholder.local_addr()?;
    // Bound, and never listening again: connections go to the pods.
    let keeps = PODS.map(|name| keep(name, &url, address));
    drop(placeholder);
    println!("chat: http://{address}");
    tokio::select! {
        _ = sigterm.recv() => {}
        ended = tokio::signal::ctrl_c() => ended?,
        failed = futures_util::future::try_join_all(keeps) => drop(failed?),
    }
    Ok(())
}

/// Keeps one pod running. It is killed with this program.
async fn keep(name: &str, url: &str, address: SocketAddr) -> Result<(), HandlerError> {
    loop {
        let mut pod = Command::new(std::env::current_exe()?);
        pod.env("CHAT_LISTEN", address.to_string()).env("POD_NAME", name).env("DATABASE_URL", url);
        let mut pod = pod.stdin(Stdio::null()).kill_on_drop(true).spawn()?;
        let status = pod.wait().await?;
        tracing::info!(pod = name, %status, "a pod has ended");
        tokio::time::sleep(RESTART).await;
    }
}
