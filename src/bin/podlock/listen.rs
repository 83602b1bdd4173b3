//! Listening for HTTP, in the same way for `podlock pod` and `podlock serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use podlock::http::{AdminKey, serve};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::metrics;

/// How long requests in progress may take when the listener ends. A pod has drained by then. Longer delays the end of
/// the process; shorter cuts answers off that were about to be sent.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// Where to listen, and for whom.
#[derive(Debug, clap::Args)]
pub(crate) struct HttpArgs {
    /// Where to listen for HTTP; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Serve metrics as Prometheus text at http://ADDR/metrics, from before the start is complete
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<SocketAddr>,
    /// A host name under which clients reach this process, beside localhost; may be given again; `*`: any. Off loopback
    /// any name is taken unless this gives some
    #[arg(long = "allow-host", value_name = "NAME", value_parser = host)]
    allowed_hosts: Vec<String>,
    /// An origin whose pages may start and cancel runs here and read streams, beside this host's own; may be given
    /// again; `*`: any
    #[arg(long = "allow-origin", value_name = "ORIGIN", value_parser = origin)]
    allowed_origins: Vec<String>,
    /// The file with the admin key, or with several, one a line [env: PODLOCK_ADMIN_KEY_FILE, or the key itself:
    /// PODLOCK_ADMIN_KEY]
    #[arg(long, value_name = "FILE")]
    admin_key_file: Option<PathBuf>,
}

impl HttpArgs {
    /// The key for what is not open to everybody. It is never an argument: other users of the machine see those.
    pub(crate) fn key(&self) -> Result<AdminKey, Failure> {
        Ok(AdminKey::from_env(self.admin_key_file.as_deref())?)
    }

    /// Serves the metrics, if that is asked for.
    pub(crate) async fn metrics(&self) -> Result<Option<metrics::Listening>, Failure> {
        match self.metrics {
            Some(address) => Ok(Some(metrics::listen(address).await?)),
            None => Ok(None),
        }
    }

    /// Binds the address. Both verbs do so before anything else, so that an address that is taken is known at once.
    pub(crate) async fn bind(&self) -> Result<TcpListener, Failure> {
        let address = self.listen;
        TcpListener::bind(address).await.map_err(|e| Failure::Failed(format!("cannot listen on {address}: {e}")))
    }
}

/// The task of the HTTP server. Of a pod it ends last: while the pod drains, probes and reads are still answered.
pub(crate) struct Server {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    pub(crate) fn start(listener: TcpListener, router: Router, args: &HttpArgs) -> Self {
        let stop = CancellationToken::new();
        let mut server = serve(listener, router);
        server = args.allowed_hosts.iter().fold(server, |server, name| server.allow_host(name));
        server = args.allowed_origins.iter().fold(server, |server, origin| server.allow_origin(origin));
        let task = tokio::spawn(server.until(stop.clone().cancelled_owned(), LAST_REQUESTS));
        Self { stop, task }
    }

    /// Takes no more requests, and waits a moment for those in progress.
    pub(crate) async fn end(self) {
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
