//! `podlock pod`: the reference pod. It links the library as any service would, and does nothing that a service could
//! not do.
//!
//! It binds the address, serves the probes while the pod starts, prints that it is ready, and serves. On SIGTERM,
//! SIGINT, SIGHUP or a drain request, it stops the pod within `--grace` while HTTP still answers. Only then it ends the
//! listener.

mod boot;
mod kind;
pub(crate) mod logs;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use podlock::http::{not_found, router_with, serve, workers_router};
use podlock::{Config, Pod, PodId};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::global::Global;
use crate::metrics;
use crate::output;
use crate::signals::EndSignals;

use logs::LogArgs;

/// How long requests in progress may take when the listener ends. The pod has drained by then. Longer delays the end of
/// the process; shorter cuts answers off that were about to be sent.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(after_help = include_str!("help.txt").trim_end())]
pub(crate) struct Args {
    /// The pod's name [env: POD_NAME] [default: a random one, but not where PODLOCK_ENV=production]
    #[arg(long)]
    name: Option<PodId>,
    /// Where to listen for HTTP; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Serve metrics as Prometheus text at http://ADDR/metrics, from before the pod starts
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// A host name under which clients reach this pod, beside localhost; may be given again; `*`: any. Off loopback
    /// any name is taken unless this gives some
    #[arg(long = "allow-host", value_name = "NAME", value_parser = host)]
    allowed_hosts: Vec<String>,
    /// An origin whose pages may start and cancel runs here and read streams, beside this host's own; may be given
    /// again; `*`: any
    #[arg(long = "allow-origin", value_name = "ORIGIN", value_parser = origin)]
    allowed_origins: Vec<String>,
    /// How long a drain may take before what is left is aborted
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// The most runs at a time [env: PODLOCK_CAPACITY] [default: 100]
    #[arg(long, value_name = "N", value_parser = capacity)]
    capacity: Option<usize>,
    /// The most runs of a kind, where that is fewer; may be given again [env: PODLOCK_CAPACITY_OF=a=2,b=10]
    #[arg(long = "capacity-of", value_name = "KIND=N", value_parser = capacity_of)]
    capacity_of: Vec<(String, usize)>,
    /// After how many crashes in a row without progress a run is quarantined; 0: never [env: PODLOCK_MAX_CRASHES]
    /// [default: 3]
    #[arg(long, value_name = "N", value_parser = max_crashes)]
    max_crashes: Option<u32>,
    /// How long the server lets a silent session live [env: PODLOCK_LEASE] [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = lease)]
    lease: Option<Duration>,
    /// A label that operators see; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// End at once when stdin is closed, so that no pod outlives the program that started it
    #[arg(long)]
    exit_with_stdin: bool,
    #[command(flatten)]
    logs: LogArgs,
}

pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    args.logs.start("info")?;
    if args.exit_with_stdin {
        boot::exit_with_stdin()?;
    }
    let mut signals = EndSignals::listen()?;
    let config = args.config(global)?;

    let listener = boot::bind(args.listen).await?;
    let metrics = match args.metrics {
        Some(address) => Some(metrics::listen(address).await?),
        None => None,
    };
    let address = listener.local_addr()?;
    if !address.ip().to_canonical().is_loopback() {
        warn_of_the_open_door(address);
    }
    let started = boot::start(&listener, &args, config, &mut signals).await;
    let outcome = match started {
        Ok(Some(pod)) => serve_pod(listener, &args, pod, &mut signals).await,
        Ok(None) => Ok(()),
        Err(e) => Err(e),
    };
    if let Some(metrics) = metrics {
        metrics.end().await;
    }
    outcome
}

/// Serves the pod's routes until the pod has ended.
async fn serve_pod(listener: TcpListener, args: &Args, pod: Pod, signals: &mut EndSignals) -> Result<(), Failure> {
    let address = listener.local_addr()?;
    let router = router_with(pod.clone(), kind::validate).merge(workers_router(pod.clone())).fallback(not_found);
    let server = Server::start(listener, router, args);

    let ready = format!("podlock pod {} listening on http://{address}", pod.pod_id());
    // The program that started this process may not read it.
    let _ = output::line(&ready);

    let outcome = live(pod, args.grace, signals).await;
    server.end().await;
    outcome
}

impl Args {
    /// The environment's settings, overridden by the command line.
    fn config(&self, global: &Global) -> Result<Config, Failure> {
        let mut config = global.config()?;
        if let Some(name) = &self.name {
            config = config.name(name.as_str());
        }
        if let Some(lease) = self.lease {
            config = config.lease(lease);
        }
        if let Some(capacity) = self.capacity {
            config = config.capacity(capacity);
        }
        for (kind, most) in &self.capacity_of {
            config = config.capacity_of(kind, *most);
        }
        if let Some(max_crashes) = self.max_crashes {
            config = config.with(|c| c.max_crashes = max_crashes);
        }
        for (key, value) in &self.labels {
            config = config.label(key, value);
        }
        if config.version.is_empty() {
            config = config.version(env!("CARGO_PKG_VERSION"));
        }
        config.validate()?;
        Ok(config)
    }
}

/// Waits until the pod should end, then ends it.
async fn live(pod: Pod, grace: Duration, signals: &mut EndSignals) -> Result<(), Failure> {
    let why = tokio::select! {
        signal = signals.next() => signal,
        () = pod.drain_requested() => "a drain request",
        () = pod.closed() => {
            let why = pod.failure().map_or_else(|| "no reason was given".to_owned(), |f| f.to_string());
            return Err(Failure::Failed(format!("pod {} has ended: {why}", pod.pod_id())));
        }
    };
    let name = pod.pod_id().to_string();
    tracing::info!(target: "podlock::pod", event = "stopping", pod = %name, why, grace_ms = millis(grace), "draining");
    let report = tokio::select! {
        report = pod.shutdown(grace) => report?,
        signal = signals.next() => {
            // Destructors would wait, and the sender of a second signal wants no wait. The server frees the lock when
            // the sockets close, and a peer takes over the runs.
            tracing::warn!(target: "podlock::pod", event = "cut_short", pod = %name, signal, "ending at once");
            crate::failure::note(&format!("a second signal, {signal}, cut the drain of pod {name} short"));
            std::process::exit(1);
        }
    };
    tracing::info!(
        target: "podlock::pod", event = "stopped", pod = %name,
        finished = report.finished, yielded = report.yielded, aborted = report.aborted, "stopped cleanly"
    );
    Ok(())
}

/// The task of the HTTP server. It ends last: while the pod drains, probes and reads are still answered.
struct Server {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    fn start(listener: TcpListener, router: Router, args: &Args) -> Self {
        let stop = CancellationToken::new();
        let mut server = serve(listener, router);
        server = args.allowed_hosts.iter().fold(server, |server, name| server.allow_host(name));
        server = args.allowed_origins.iter().fold(server, |server, origin| server.allow_origin(origin));
        let task = tokio::spawn(server.until(stop.clone().cancelled_owned(), LAST_REQUESTS));
        Self { stop, task }
    }

    /// Takes no more requests, and waits a moment for those in progress.
    async fn end(self) {
        self.stop.cancel();
        match self.task.await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                tracing::warn!(target: "podlock::pod", event = "http_failed", error = %e, "HTTP was not served")
            }
            Err(e) => {
                tracing::warn!(
                    target: "podlock::pod", event = "http_failed", error = %e,
                    "HTTP was not served to its end"
                )
            }
        }
    }
}

/// Warns that there is no authentication: anyone who reaches the address may use all routes.
fn warn_of_the_open_door(address: SocketAddr) {
    let warning = format!(
        "listening on {address}, which is not loopback: there is no authentication, and whoever reaches it may start, \
         read and cancel runs, and register workers. Let only those connect who may, or put a proxy that asks before it"
    );
    if tracing::enabled!(target: "podlock::pod", tracing::Level::WARN) {
        tracing::warn!(target: "podlock::pod", event = "no_authentication", %address, "{warning}");
    } else {
        // A user who filters the log is warned on stderr nevertheless.
        crate::failure::note(&warning);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// The library checks the settings again. The checks here use the same bounds, so that a bad word on the command line is
// a usage error.

pub(crate) fn lease(text: &str) -> Result<Duration, String> {
    let lease = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    within_its_bound(Config::new("").lease(lease))?;
    Ok(lease)
}

fn capacity(text: &str) -> Result<usize, String> {
    let most = number(text)?;
    within_its_bound(Config::new("").capacity(most))?;
    Ok(most)
}

fn capacity_of(text: &str) -> Result<(String, usize), String> {
    let (kind, most) = match text.split_once('=') {
        Some((kind, most)) if !kind.is_empty() => (kind, number(most)?),
        _ => return Err("it is written kind=n".to_owned()),
    };
    within_its_bound(Config::new("").capacity_of(kind, most))?;
    Ok((kind.to_owned(), most))
}

fn max_crashes(text: &str) -> Result<u32, String> {
    let most = number(text)?;
    within_its_bound(Config::new("").with(|c| c.max_crashes = most))?;
    Ok(most)
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N, String>
where
    N::Err: std::fmt::Display,
{
    text.parse().map_err(|e: N::Err| e.to_string())
}

fn within_its_bound(config: Config) -> Result<(), String> {
    config.validate().map(|_| ()).map_err(|e| e.to_string())
}

/// A host name as in a URL, without the port.
fn host(text: &str) -> Result<String, String> {
    let is_name = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    let address = text.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    if text == "*" || address.is_ok() || is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("it is a host name or an address, without scheme and port, or *".to_owned())
    }
}

/// An origin, as browsers send it.
fn origin(text: &str) -> Result<String, String> {
    let is_origin = text.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty() && !rest.is_empty() && !rest.contains(['/', '@', '?', '#', ' '])
    });
    if ["*", "null"].contains(&text) || is_origin {
        Ok(text.to_owned())
    } else {
        Err("it is written scheme://host or scheme://host:port, or null, or *".to_owned())
    }
}

pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is written key=value".to_owned()),
    }
}
