//! `podlock pod`: the reference pod. It links the library as any service would, and does nothing that a service could
//! not do.
//!
//! It binds the address, serves the probes while the pod starts, prints that it is ready, and serves. On SIGTERM,
//! SIGINT, SIGHUP or a drain request, it stops the pod within `--grace` while HTTP still answers. Only then it ends the
//! listener.

mod boot;
mod kind;
pub(crate) mod logs;
mod webhook;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use podlock::http::{AdminKey, liveness_router, not_found, probes, runs_router, workers_router};
use podlock::{Config, Pod, PodId};

use crate::failure::Failure;
use crate::global::Global;
use crate::listen::{HttpArgs, Server};
use crate::output;
use crate::signals::EndSignals;

use logs::LogArgs;

#[derive(Debug, clap::Args)]
#[command(after_help = include_str!("help.txt").trim_end())]
pub(crate) struct Args {
    /// The pod's name [env: POD_NAME] [default: a random one, but not where PODLOCK_ENV=production]
    #[arg(long)]
    name: Option<PodId>,
    #[command(flatten)]
    http: HttpArgs,
    /// Leave the routes of runs and workers open to whoever reaches the address, off loopback too; without it they need
    /// the admin key there
    #[arg(long)]
    open: bool,
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
    webhook: webhook::WebhookArgs,
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
    let webhook = args.webhook.webhook()?;

    let key = args.http.key()?;
    let listener = args.http.bind().await?;
    let metrics = args.http.metrics().await?;
    let address = listener.local_addr()?;
    let needs_key = !address.ip().to_canonical().is_loopback() && !args.open;
    if !needs_key && !address.ip().to_canonical().is_loopback() {
        warn_of_the_open_door(address);
    } else if needs_key && key.is_none() {
        warn_of_the_shut_door(address);
    }
    let started = boot::start(&listener, &args, config, &mut signals).await;
    let outcome = match started {
        Ok(Some(pod)) => {
            if let Some(webhook) = webhook {
                podlock::http::webhook(&pod, webhook)?;
            }
            let server = Server::start(listener, routes(&pod, key, needs_key), &args.http);
            let ready = format!("podlock pod {} listening on http://{address}", pod.pod_id());
            // The program that started this process may not read it.
            let _ = output::line(&ready);
            let outcome = live(pod, args.grace, &mut signals).await;
            server.end().await;
            outcome
        }
        Ok(None) => Ok(()),
        Err(e) => Err(e),
    };
    if let Some(metrics) = metrics {
        metrics.end().await;
    }
    outcome
}

/// All routes of the pod. Probes are always open, and the liveness history always needs the key.
fn routes(pod: &Pod, key: AdminKey, needs_key: bool) -> Router {
    let work = runs_router(pod.clone(), kind::validate).merge(workers_router(pod.clone()));
    let work = if needs_key { key.protect(work) } else { work };
    work.merge(probes(pod.clone())).merge(liveness_router(pod.operator(), key)).fallback(not_found)
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

/// Warns that there is no authentication: anyone who reaches the address may use all routes.
fn warn_of_the_open_door(address: SocketAddr) {
    let warning = format!(
        "listening on {address}, which is not loopback, with --open: there is no authentication, and whoever reaches it \
         may start, read and cancel runs, and register workers. Let only those connect who may, or put a proxy that asks \
         before it"
    );
    if tracing::enabled!(target: "podlock::pod", tracing::Level::WARN) {
        tracing::warn!(target: "podlock::pod", event = "no_authentication", %address, "{warning}");
    } else {
        // A user who filters the log is warned on stderr nevertheless.
        crate::failure::note(&warning);
    }
}

/// Says why the routes of runs and workers are refused.
fn warn_of_the_shut_door(address: SocketAddr) {
    tracing::warn!(
        target: "podlock::pod", event = "runs_refused", %address,
        "listening on {address}, which is not loopback, without an admin key: the routes of runs and workers are refused to \
         everybody. Set PODLOCK_ADMIN_KEY or PODLOCK_ADMIN_KEY_FILE, or leave the routes open by --open"
    );
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

pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is written key=value".to_owned()),
    }
}
