//! Opens sockets directly, so that podlock sets every time-out and keepalive, and they cover the whole handshake.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio_postgres::Client;
use tokio_postgres::config::{SslMode as DriverSslMode, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_util::either::Either;
use tokio_util::task::AbortOnDropHandle;

use super::conninfo::{self, ConnInfo, SslMode, Target};
use super::credentials::{Environment, PasswordSource};
use super::errors;
use super::knock::Door;
use super::tls::{self, Tls};
use crate::error::{Error, ErrorKind, Result};

/// A stream to a server.
pub(crate) type Stream = Either<TcpStream, UnixStream>;
/// The future that moves a connection's bytes. It ends when the session has died.
pub(crate) type Connection = tokio_postgres::Connection<Stream, tls::TlsStream<Stream>>;

/// A connection whose handshake is done.
pub(crate) struct Dialled {
    pub(crate) client: Client,
    pub(crate) connection: Connection,
    /// Our own port. The server should see the same one if nothing stands in between. `None` over a unix socket.
    pub(crate) local_port: Option<u16>,
    /// Where the server was reached.
    pub(crate) door: Door,
}

/// Opens connections to the servers of one connection string. All four kinds of connections are opened here.
#[derive(Clone)]
pub(crate) struct Dialer {
    info: Arc<ConnInfo>,
    tls: Tls,
    passwords: Option<(PasswordSource, Handle)>,
    /// The target that worked last. It is tried first, so that a silent host costs its time-out only once.
    good: Arc<AtomicUsize>,
    timeout: Duration,
    lease: Duration,
}

/// How to reach the servers and log in.
pub(crate) struct Access<'a> {
    /// The connection string, in libpq's words.
    pub(crate) url: &'a str,
    pub(crate) environment: &'a Environment,
    pub(crate) passwords: Option<&'a PasswordSource>,
    /// Takes precedence over the value in the connection string.
    pub(crate) connect_timeout: Option<Duration>,
    /// Applies if nothing else sets a time-out.
    pub(crate) default_connect_timeout: Duration,
    /// How long to wait for a peer that does not acknowledge.
    pub(crate) lease: Duration,
}

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protection {
    Plain,
    /// TLS if the server has it.
    Preferred,
    Tls,
}

impl Protection {
    /// The protection to try first, and the one to try if the server or the handshake refuses that.
    fn of(mode: SslMode, target: &Target) -> (Self, Option<Self>) {
        match (target, mode) {
            (Target::Unix { .. }, _) | (_, SslMode::Disable) => (Self::Plain, None),
            (_, SslMode::Allow) => (Self::Plain, Some(Self::Tls)),
            (_, SslMode::Prefer) => (Self::Preferred, Some(Self::Plain)),
            (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => (Self::Tls, None),
        }
    }
}

/// The state that the handshakes with one target share.
struct Login {
    driver: tokio_postgres::Config,
    connector: tls::Connect<Stream>,
}

impl Dialer {
    /// Reads the connection string. Call it inside the runtime on which a password will be requested.
    pub(crate) fn new(access: Access<'_>) -> Result<Self> {
        let Access { url, environment, passwords, connect_timeout, default_connect_timeout, lease } = access;
        let info = ConnInfo::resolve(url, environment)?;
        // A value that was set by name takes precedence, then the connection string's, then the default.
        let timeout = connect_timeout.or(info.connect_timeout).unwrap_or(default_connect_timeout);
        let passwords = match passwords {
            None => None,
            Some(source) => {
                let runtime = Handle::try_current().map_err(|e| {
                    Error::new(ErrorKind::Config, format!("a password can be asked for only inside of a runtime: {e}"))
                        .state("nothing was started")
                        .help("connect from inside of a tokio runtime")
                })?;
                Some((source.clone(), runtime))
            }
        };
        let tls = Tls::new(info.tls.clone());
        Ok(Self { info: Arc::new(info), tls, passwords, good: Arc::default(), timeout, lease })
    }

    /// Where this dials, for messages.
    pub(crate) fn describe(&self) -> String {
        self.info.describe()
    }

    /// How long connecting to all targets in turn may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout * u32::try_from(self.info.targets.len()).unwrap_or(u32::MAX)
    }

    /// The name that the connection string gives connections without a role of their own.
    pub(crate) fn application_name(&self) -> Option<&str> {
        self.info.application_name.as_deref()
    }

    /// The targets in the order in which to try them, beginning with the one that worked last.
    pub(crate) fn attempts(&self) -> Attempts<'_> {
        Attempts { dialer: self, first: self.good.load(Ordering::Relaxed), made: 0, worst: None }
    }

    /// Connects to one target and does the handshake, all within the connect time-out.
    ///
    /// Cancel safe: a dropped call closes its socket.
    pub(crate) async fn dial(&self, target: &Target, application_name: &str) -> Result<Dialled> {
        let step = format!("connecting to {target}");
        // Boxed because its type is deep. Otherwise the type of each future that awaits it, also of a service's `main`,
        // would contain it.
        let log_in: BoxFuture<'_, _> = Box::pin(self.log_in(&step, target, application_name));
        match tokio::time::timeout(self.timeout, log_in).await {
            Ok(done) => done,
            Err(_) => Err(errors::timed_out(&step, self.timeout).state("the socket was closed")),
        }
    }

    async fn log_in(&self, step: &str, target: &Target, application_name: &str) -> Result<Dialled> {
        let password = self.ask_for_password(step, target).await?;
        let (first, second) = Protection::of(self.tls.words().mode, target);
        let refused = match self.handshake(step, target, application_name, password.as_ref(), first).await {
            Err(e) if second.is_some() && may_do_otherwise(&e) => e,
            done => return done,
        };
        let Some(second) = second else { return Err(refused) };
        match self.handshake(step, target, application_name, password.as_ref(), second).await {
            Err(e) if may_do_otherwise(&e) => Err(e.during(&format!("after another way had failed ({refused})"))),
            done => {
                if done.is_ok() && second == Protection::Plain && refused.kind() == ErrorKind::Tls {
                    tracing::warn!(
                        target: "podlock", event = "tls_downgraded", server = %target, cause = %refused,
                        "connected without TLS, as sslmode=prefer permits: the handshake failed"
                    );
                }
                done
            }
        }
    }

    /// The password from the service's own source. It is requested on the application's runtime, where the source's
    /// clients live.
    async fn ask_for_password(&self, step: &str, target: &Target) -> Result<Option<SecretString>> {
        let Some((source, runtime)) = &self.passwords else { return Ok(None) };
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::AuthFailed, format!("{step}: asking the service for the password failed: {e}"))
                .state("no connection was made")
                .help("see what Config::password_from was given; it is asked again at the next try")
                .caused_by(e)
        };
        let (source, request) = (source.clone(), self.info.request(target));
        let asked = AbortOnDropHandle::new(runtime.spawn(async move { source.ask(request).await }));
        asked.await.map_err(|e| failed(e.into()))?.map(Some).map_err(failed)
    }

    async fn handshake(
        &self,
        step: &str,
        target: &Target,
        application_name: &str,
        password: Option<&SecretString>,
        protection: Protection,
    ) -> Result<Dialled> {
        let Login { driver, connector } = self.prepare(target, application_name, password, protection).await?;
        let (stream, local_port, door) = self.connect(target).await?;
        match driver.connect_raw(stream, connector).await {
            Ok((client, connection)) => Ok(Dialled { client, connection, local_port, door }),
            Err(e) => {
                let direct = self.tls.words().direct && errors::is_io(&e);
                let failed = errors::translate_handshake(step, e);
                // An older server closes the connection.
                Err(if direct { failed.help("sslnegotiation=direct needs PostgreSQL 17 or newer") } else { failed })
            }
        }
    }

    /// Reads the files that the connection string names, outside of the runtime's threads.
    async fn prepare(
        &self,
        target: &Target,
        application_name: &str,
        password: Option<&SecretString>,
        protection: Protection,
    ) -> Result<Login> {
        let (info, tls, target) = (Arc::clone(&self.info), self.tls.clone(), target.clone());
        let (application_name, password) = (application_name.to_owned(), password.cloned());
        let prepare = move || {
            let password = match password {
                Some(password) => Some(conninfo::in_bytes(&password)),
                None => info.written_password(&target)?,
            };
            let connector = tls.connector::<Stream>(&target.host(), protection == Protection::Plain)?;
            let mut driver = tokio_postgres::Config::new();
            driver.user(&info.user).dbname(&info.dbname).application_name(application_name);
            driver.channel_binding(info.channel_binding);
            driver.ssl_mode(match protection {
                Protection::Plain => DriverSslMode::Disable,
                Protection::Preferred => DriverSslMode::Prefer,
                Protection::Tls => DriverSslMode::Require,
            });
            if tls.words().direct {
                driver.ssl_negotiation(SslNegotiation::Direct);
            }
            if let Some(options) = &info.options {
                driver.options(options);
            }
            if let Some(password) = password {
                driver.password(password.expose_secret());
            }
            Ok(Login { driver, connector })
        };
        tokio::task::spawn_blocking(prepare).await.map_err(|e| {
            Error::new(ErrorKind::Stopped, format!("reading the connection's files was ended: {e}")).caused_by(e)
        })?
    }

    async fn connect(&self, target: &Target) -> Result<(Stream, Option<u16>, Door)> {
        let unreachable = |e: std::io::Error| {
            Error::new(ErrorKind::Unreachable, format!("connecting to {target}: {e}"))
                .help("see whether the server runs and whether DATABASE_URL names its address")
                .caused_by(e)
        };
        match target {
            Target::Unix { directory, port } => {
                let socket = Target::socket(directory, *port);
                let stream = UnixStream::connect(&socket).await.map_err(unreachable)?;
                Ok((Either::Right(stream), None, Door::Unix(socket)))
            }
            Target::Tcp { host, port, address } => {
                let addresses: Vec<SocketAddr> = match address {
                    Some(address) => vec![SocketAddr::new(*address, *port)],
                    None => tokio::net::lookup_host((host.as_str(), *port)).await.map_err(unreachable)?.collect(),
                };
                let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
                let patience = self.patience(addresses.len());
                for address in addresses {
                    let connecting = tokio::time::timeout(patience, TcpStream::connect(address));
                    match connecting.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
                        Ok(stream) => {
                            self.tune(&stream).map_err(unreachable)?;
                            let port = stream.local_addr().map_err(unreachable)?.port();
                            return Ok((Either::Left(stream), Some(port), Door::Tcp(address)));
                        }
                        Err(e) => last = e,
                    }
                }
                Err(unreachable(last))
            }
        }
    }

    /// How long one address may take to accept, if its name has so many.
    ///
    /// A host that vanished answers nothing, and what is tried after it waits that long at each try. After a failover
    /// that can be the new primary. So if there is something else to try, it is a tenth of the lease. A host that takes
    /// longer to accept could not do a handshake, which is several more round trips, within half a lease either.
    fn patience(&self, addresses: usize) -> Duration {
        let share = self.timeout / u32::try_from(addresses.max(1)).unwrap_or(u32::MAX);
        if self.info.targets.len().max(addresses) > 1 { share.min(self.lease / 10) } else { share }
    }

    /// Sets our side of the lease: a dead server or path is noticed within about the lease, even during a statement.
    /// The connection string may say otherwise. The options are set and read back, since a kernel may ignore them
    /// silently.
    fn tune(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let words = &self.info.socket;
        let socket = SockRef::from(stream);
        let every = Duration::from_secs((self.lease.as_secs() / 5).max(1));
        if !words.off {
            let keepalive = TcpKeepalive::new()
                .with_time(words.idle.unwrap_or(every))
                .with_interval(words.interval.unwrap_or(every))
                .with_retries(words.count.unwrap_or(3));
            socket.set_tcp_keepalive(&keepalive)?;
        }
        #[cfg(target_os = "linux")]
        {
            let limit = words.user_timeout.unwrap_or(Some(self.lease));
            socket.set_tcp_user_timeout(limit)?;
            let took = socket.tcp_user_timeout()?;
            if took != limit || socket.keepalive()? == words.off {
                return Err(std::io::Error::other(format!(
                    "the system did not take keepalives and TCP_USER_TIMEOUT {limit:?}; it says {took:?}"
                )));
            }
        }
        Ok(())
    }
}

/// Tries the targets one after the other. If several fail, it reports the most informative error.
pub(crate) struct Attempts<'a> {
    dialer: &'a Dialer,
    first: usize,
    made: usize,
    worst: Option<Error>,
}

impl<'a> Attempts<'a> {
    pub(crate) fn next(&mut self) -> Option<&'a Target> {
        let targets = &self.dialer.info.targets;
        let next = (self.made < targets.len()).then(|| &targets[(self.first + self.made) % targets.len()]);
        self.made += 1;
        next
    }

    /// Takes the outcome of the latest try. `None`: try the next target.
    pub(crate) fn ended<T>(&mut self, outcome: Result<T>) -> Option<T> {
        match outcome {
            Ok(done) => {
                let index = (self.first + self.made - 1) % self.dialer.info.targets.len();
                self.dialer.good.store(index, Ordering::Relaxed);
                return Some(done);
            }
            // Like libpq, does not offer a password to the next host if one host refused it.
            Err(e) if e.kind() == ErrorKind::AuthFailed => {
                self.worst = Some(e);
                self.made = self.dialer.info.targets.len();
            }
            Err(e) if self.worst.as_ref().is_none_or(|w| says(&e) > says(w)) => self.worst = Some(e),
            Err(_) => {}
        }
        None
    }

    pub(crate) fn give_up(self) -> Error {
        self.worst.unwrap_or_else(|| Error::new(ErrorKind::Config, "the connection string names no host"))
    }
}

/// Whether the other protection may succeed although this one failed: the server's `pg_hba.conf` has no matching entry,
/// or the two sides could not agree on TLS.
fn may_do_otherwise(error: &Error) -> bool {
    error.kind() == ErrorKind::Tls || error.sqlstate() == Some(SqlState::INVALID_AUTHORIZATION_SPECIFICATION.code())
}

/// How informative an error is, compared with those of other hosts: an answer is more informative than silence, and a
/// primary's answer more than a standby's.
fn says(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::Unreachable => 0,
        ErrorKind::Timeout => 1,
        ErrorKind::Standby => 2,
        _ => 3,
    }
}
