//! Sockets of our own, so that every time-out and keepalive is ours and covers the whole handshake.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::Client;
use tokio_postgres::config::Host;
use tokio_util::either::Either;

use super::{errors, tls, url};
use crate::config::{Config, Settings};
use crate::error::{Error, ErrorKind, Result};

/// A stream to a server.
pub(crate) type Stream = Either<TcpStream, UnixStream>;
/// The future that moves a connection's bytes. Its end is the signal that the session died.
pub(crate) type Connection = tokio_postgres::Connection<Stream, tokio_postgres::tls::NoTlsStream>;

/// One place where a server may be.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Tcp { host: String, port: u16, address: Option<std::net::IpAddr> },
    Unix { socket: PathBuf },
}

impl Target {
    /// The port that is dialled; `None` for a unix socket.
    pub(crate) fn port(&self) -> Option<i32> {
        match self {
            Self::Tcp { port, .. } => Some(i32::from(*port)),
            Self::Unix { .. } => None,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port, address: None } => write!(f, "{host}:{port}"),
            Self::Tcp { host, port, address: Some(address) } => write!(f, "{host} ({address}):{port}"),
            Self::Unix { socket } => write!(f, "{}", socket.display()),
        }
    }
}

/// A connection whose handshake is done.
pub(crate) struct Dialled {
    pub(crate) client: Client,
    pub(crate) connection: Connection,
    /// Our own port, as the server should see it if nothing stands in between; `None` over a unix socket.
    pub(crate) local_port: Option<u16>,
}

/// Opens connections to the servers of one connection string.
#[derive(Clone)]
pub(crate) struct Dialer {
    config: Arc<tokio_postgres::Config>,
    targets: Arc<[Target]>,
    /// The target that was good last: tried first, so that a silent host costs its time once.
    good: Arc<AtomicUsize>,
    timeout: Duration,
    lease: Duration,
}

impl Dialer {
    pub(crate) fn new(config: &Config, settings: &Settings) -> Result<Self> {
        let parsed = url::parse(config.database_url())?;
        let targets = targets(&parsed)?.into();
        let good = Arc::default();
        Ok(Self { config: Arc::new(parsed), targets, good, timeout: settings.connect_timeout, lease: settings.lease })
    }

    /// The parsed connection string, for the pool.
    pub(crate) fn config(&self) -> &tokio_postgres::Config {
        &self.config
    }

    /// Where this dials, for messages.
    pub(crate) fn describe(&self) -> String {
        url::describe(&self.config)
    }

    /// The targets in the order in which to try them, with their indices.
    pub(crate) fn targets(&self) -> impl Iterator<Item = (usize, &Target)> {
        let (count, first) = (self.targets.len(), self.good.load(Ordering::Relaxed));
        let order = move |i: usize| (first + i) % count.max(1);
        (0..count).filter_map(move |i| self.targets.get(order(i)).map(|target| (order(i), target)))
    }

    pub(crate) fn note_good(&self, index: usize) {
        self.good.store(index, Ordering::Relaxed);
    }

    /// Connects to one target and does the handshake, all within the connect time-out.
    ///
    /// Cancel safe: a dropped call closes its socket.
    pub(crate) async fn dial(&self, target: &Target, application_name: &str) -> Result<Dialled> {
        let step = format!("connecting to {target}");
        let mut config = tokio_postgres::Config::clone(&self.config);
        config.application_name(application_name);
        let handshake = async {
            let (stream, local_port) = self.connect(target).await?;
            let (client, connection) =
                config.connect_raw(stream, tls::connector()).await.map_err(|e| errors::translate(&step, e))?;
            Ok(Dialled { client, connection, local_port })
        };
        match tokio::time::timeout(self.timeout, handshake).await {
            Ok(done) => done,
            Err(_) => Err(errors::timed_out(&step, self.timeout).left("the socket was closed")),
        }
    }

    async fn connect(&self, target: &Target) -> Result<(Stream, Option<u16>)> {
        let unreachable = |e: std::io::Error| {
            Error::new(ErrorKind::Unreachable, format!("connecting to {target}: {e}"))
                .todo("see whether the server runs and whether DATABASE_URL names its address")
                .caused_by(e)
        };
        match target {
            Target::Unix { socket } => {
                let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
                Ok((Either::Right(stream), None))
            }
            Target::Tcp { host, port, address } => {
                let addresses: Vec<SocketAddr> = match address {
                    Some(address) => vec![SocketAddr::new(*address, *port)],
                    None => tokio::net::lookup_host((host.as_str(), *port)).await.map_err(unreachable)?.collect(),
                };
                let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
                // Each address has its share of the time: one that does not answer must not use it up.
                let share = self.timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
                for address in addresses {
                    let connecting = tokio::time::timeout(share, TcpStream::connect(address));
                    match connecting.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
                        Ok(stream) => {
                            self.tune(&stream).map_err(unreachable)?;
                            let port = stream.local_addr().map_err(unreachable)?.port();
                            return Ok((Either::Left(stream), Some(port)));
                        }
                        Err(e) => last = e,
                    }
                }
                Err(unreachable(last))
            }
        }
    }

    /// Our side of the lease: a dead server or path is noticed within about the lease even in mid-statement. Set, and
    /// read back, since a kernel may refuse silently.
    fn tune(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        let every = Duration::from_secs((self.lease.as_secs() / 5).max(1));
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(every).with_interval(every).with_retries(3))?;
        #[cfg(target_os = "linux")]
        {
            socket.set_tcp_user_timeout(Some(self.lease))?;
            let took = socket.tcp_user_timeout()?;
            if took != Some(self.lease) || !socket.keepalive()? {
                return Err(std::io::Error::other(format!(
                    "the system did not take keepalives and TCP_USER_TIMEOUT {:?}; it says {took:?}",
                    self.lease
                )));
            }
        }
        Ok(())
    }
}

fn targets(config: &tokio_postgres::Config) -> Result<Vec<Target>> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    if ports.len() > 1 && ports.len() != hosts.len().max(addresses.len()) {
        return Err(Error::new(
            ErrorKind::Config,
            format!("DATABASE_URL names {} hosts and {} ports", hosts.len().max(addresses.len()), ports.len()),
        )
        .todo("name one port, or one for each host"));
    }
    let port = |i: usize| ports.get(i).or_else(|| ports.first()).copied().unwrap_or(5432);
    let target = |i: usize| match hosts.get(i) {
        Some(Host::Unix(directory)) => Target::Unix { socket: directory.join(format!(".s.PGSQL.{}", port(i))) },
        Some(Host::Tcp(host)) => Target::Tcp { host: host.clone(), port: port(i), address: addresses.get(i).copied() },
        None => Target::Tcp { host: String::new(), port: port(i), address: addresses.get(i).copied() },
    };
    Ok((0..hosts.len().max(addresses.len())).map(target).collect())
}
