//! Where the server is and how to log in. The values of libpq's words come from the connection string, a service file,
//! the environment and libpq's defaults, in this order.

pub(super) mod files;
mod syntax;
mod words;

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretSlice, SecretString};
use tokio_postgres::config::ChannelBinding;

use super::credentials::{Environment, PasswordRequest};
use crate::error::{Error, ErrorKind, Result};
use files::{Login, Passfile};
use words::{Values, bad_value};

const DEFAULT_PORT: u16 = 5432;
/// The socket directories of Debian's servers, and PostgreSQL's own default.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// One place where a server may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `host` is the name for TLS and passwords. If there is an `address`, that is dialled.
    Tcp {
        host: String,
        port: u16,
        address: Option<IpAddr>,
    },
    Unix {
        directory: PathBuf,
        port: u16,
    },
}

impl Target {
    /// The port to dial. `None` for a unix socket.
    pub(crate) fn tcp_port(&self) -> Option<i32> {
        match self {
            Self::Tcp { port, .. } => Some(i32::from(*port)),
            Self::Unix { .. } => None,
        }
    }

    fn port(&self) -> u16 {
        match self {
            Self::Tcp { port, .. } | Self::Unix { port, .. } => *port,
        }
    }

    /// The socket's file.
    pub(crate) fn socket(directory: &std::path::Path, port: u16) -> PathBuf {
        directory.join(format!(".s.PGSQL.{port}"))
    }

    /// The name that a certificate must have: the host, or the address if there is no host name.
    pub(crate) fn host(&self) -> String {
        match self {
            Self::Tcp { host, address: Some(address), .. } if host.is_empty() => address.to_string(),
            Self::Tcp { host, .. } => host.clone(),
            Self::Unix { directory, .. } => directory.display().to_string(),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port, address: Some(address) } if !host.is_empty() => {
                write!(f, "{host} ({address}):{port}")
            }
            Self::Tcp { port, .. } => write!(f, "{}:{port}", self.host()),
            Self::Unix { directory, port } => write!(f, "{}", Self::socket(directory, *port).display()),
        }
    }
}

/// How a connection is protected: libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SslMode {
    Disable,
    /// TLS only if the server refuses a connection without it.
    Allow,
    /// TLS if the server has it.
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Which certificate authorities to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Roots {
    /// The system's certificate authorities.
    System,
    File(PathBuf),
}

/// The words about TLS.
#[derive(Clone, Debug)]
pub(crate) struct TlsWords {
    pub(crate) mode: SslMode,
    /// Begins TLS with the first byte, without a request in PostgreSQL's protocol (17 and newer).
    pub(crate) direct: bool,
    pub(crate) roots: Option<Roots>,
    pub(crate) revocations: Option<PathBuf>,
    /// A client certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) sni: bool,
    /// Whether TLS 1.2 and TLS 1.3 are allowed.
    pub(crate) versions: (bool, bool),
}

/// The words about keepalives on the client's side. A `None` is derived from the lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SocketWords {
    pub(crate) off: bool,
    pub(crate) idle: Option<Duration>,
    pub(crate) interval: Option<Duration>,
    pub(crate) count: Option<u32>,
    /// `Some(None)`: the system's default.
    pub(crate) user_timeout: Option<Option<Duration>>,
}

/// A connection string that was read and checked.
#[derive(Clone)]
pub(crate) struct ConnInfo {
    pub(crate) targets: Vec<Target>,
    pub(crate) user: String,
    pub(crate) dbname: String,
    password: Option<SecretString>,
    passfile: Option<Passfile>,
    pub(crate) options: Option<String>,
    pub(crate) application_name: Option<String>,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) socket: SocketWords,
    pub(crate) tls: TlsWords,
}

impl ConnInfo {
    /// Reads `text`, and adds values from `environment`.
    pub(crate) fn resolve(text: &str, environment: &Environment) -> Result<Self> {
        let names_a_server = ["PGHOST", "PGHOSTADDR", "PGSERVICE"].iter().any(|name| environment.get(name).is_some());
        if text.trim().is_empty() && !names_a_server {
            return Err(Error::new(
                ErrorKind::Config,
                "DATABASE_URL is missing or empty, and so are PGHOST and PGSERVICE",
            )
            .state("nothing was started")
            .help("set it to postgres://user:password@host:5432/database"));
        }
        let mut values = syntax::parse(text)?;
        let service = values.get("service").or_else(|| environment.get("PGSERVICE")).map(ToOwned::to_owned);
        if let Some(service) = service {
            let file = values.get("servicefile").or_else(|| environment.get("PGSERVICEFILE")).map(ToOwned::to_owned);
            values.fill_from(files::service(&service, file.as_deref(), environment)?);
        }
        values.fill_from_variables(|name| environment.get(name))?;
        Self::from_values(&values, environment)
    }

    fn from_values(values: &Values, environment: &Environment) -> Result<Self> {
        let user = match values.get("user") {
            Some(user) => user.to_owned(),
            None => whoami::username().map_err(|e| {
                Error::new(
                    ErrorKind::Config,
                    format!("the connection string names no user, and the system's name is not known: {e}"),
                )
                .state("nothing was started")
                .help("name the user")
            })?,
        };
        let dbname = values.get("dbname").unwrap_or(&user).to_owned();
        let targets = targets(values)?;
        let by_tcp = targets.iter().any(|target| matches!(target, Target::Tcp { .. }));
        let tls = tls_words(values, environment, by_tcp)?;
        require_primary(values)?;
        let usual = || in_home(environment, ".pgpass").map(|path| Passfile { path, named: false });
        let passfile = values.get("passfile").map(|path| Passfile { path: path.into(), named: true }).or_else(usual);
        let channel_binding = match values.get("channel_binding") {
            None | Some("prefer") => ChannelBinding::Prefer,
            Some("disable") => ChannelBinding::Disable,
            Some("require") => ChannelBinding::Require,
            Some(_) => return Err(bad_value("channel_binding", "disable, prefer or require")),
        };
        let application_name = values.get("application_name").or_else(|| values.get("fallback_application_name"));
        Ok(Self {
            targets,
            user,
            dbname,
            password: values.get("password").map(SecretString::from),
            passfile,
            options: options(values, environment),
            application_name: application_name.map(ToOwned::to_owned),
            connect_timeout: seconds(values, "connect_timeout")?,
            channel_binding,
            socket: socket_words(values)?,
            tls,
        })
    }

    /// The request for a password for `target`.
    pub(crate) fn request(&self, target: &Target) -> PasswordRequest {
        PasswordRequest {
            host: target.host(),
            port: target.port(),
            user: self.user.clone(),
            database: self.dbname.clone(),
        }
    }

    /// The stored password for `target`: from the string or the environment, or else from the password file, which is
    /// read each time. Blocks on that file.
    pub(crate) fn written_password(&self, target: &Target) -> Result<Option<SecretSlice<u8>>> {
        if let Some(password) = &self.password {
            return Ok(Some(in_bytes(password)));
        }
        let Some(file) = &self.passfile else { return Ok(None) };
        let host = match target {
            Target::Unix { directory, .. }
                if SOCKET_DIRECTORIES.iter().any(|d| directory == std::path::Path::new(d)) =>
            {
                "localhost".to_owned()
            }
            other => other.host(),
        };
        files::password(file, Login { host: &host, port: target.port(), dbname: &self.dbname, user: &self.user })
    }

    /// Where this connects to, for messages: hosts and database, no user, no password.
    pub(crate) fn describe(&self) -> String {
        let targets: Vec<_> = self.targets.iter().map(ToString::to_string).collect();
        format!("{} (database {})", targets.join(", "), self.dbname)
    }
}

/// A password as it is sent.
pub(crate) fn in_bytes(password: &SecretString) -> SecretSlice<u8> {
    password.expose_secret().as_bytes().to_vec().into()
}

fn targets(values: &Values) -> Result<Vec<Target>> {
    let list =
        |name| values.get(name).map(|text| text.split(',').map(str::trim).collect::<Vec<_>>()).unwrap_or_default();
    let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = hosts.len().max(addresses.len()).max(1);
    let refuse = |what: String, todo: &str| Error::new(ErrorKind::Config, what).state("nothing was started").help(todo);
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        let what = format!("the connection string names {} hosts and {} host addresses", hosts.len(), addresses.len());
        return Err(refuse(what, "give each host an address, or leave hostaddr out"));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(refuse(
            format!("the connection string names {count} hosts and {} ports", ports.len()),
            "name one port, or one for each host",
        ));
    }
    let mut targets = Vec::with_capacity(count);
    for i in 0..count {
        let port = match ports.get(i).or_else(|| ports.first().filter(|_| ports.len() == 1)) {
            None | Some(&"") => DEFAULT_PORT,
            Some(port) => match port.parse() {
                Ok(port) if port != 0 => port,
                _ => return Err(bad_value("port", "numbers from 1 to 65535")),
            },
        };
        let host = hosts.get(i).copied().unwrap_or_default();
        let address = match addresses.get(i).copied().filter(|address| !address.is_empty()) {
            Some(address) => Some(IpAddr::from_str(address).map_err(|_| bad_value("hostaddr", "numeric addresses"))?),
            None => None,
        };
        targets.push(match (host, address) {
            (host, Some(_)) => Target::Tcp { host: host.to_owned(), port, address },
            ("", None) => Target::Unix { directory: default_directory(port), port },
            (host, None) if host.starts_with('/') => Target::Unix { directory: host.into(), port },
            (host, None) if host.starts_with('@') => {
                return Err(refuse(
                    "the connection string names an abstract unix socket, which podlock does not dial".to_owned(),
                    "name the directory of the server's socket",
                ));
            }
            (host, None) => Target::Tcp { host: host.to_owned(), port, address: None },
        });
    }
    match values.get("load_balance_hosts") {
        None | Some("disable") => {}
        Some("random") => fastrand::shuffle(&mut targets),
        Some(_) => return Err(bad_value("load_balance_hosts", "disable or random")),
    }
    Ok(targets)
}

fn default_directory(port: u16) -> PathBuf {
    let directories = SOCKET_DIRECTORIES.map(PathBuf::from);
    let with_socket = directories.iter().find(|directory| Target::socket(directory, port).exists());
    let [first, _] = &directories;
    with_socket.unwrap_or(first).clone()
}

/// Among several hosts podlock always uses the primary: only its locks protect anything.
fn require_primary(values: &Values) -> Result<()> {
    match values.get("target_session_attrs") {
        None | Some("any" | "read-write" | "primary") => Ok(()),
        Some("read-only" | "standby" | "prefer-standby") => Err(Error::new(
            ErrorKind::Config,
            "the connection string's target_session_attrs asks for a standby, and only a primary's locks mean \
             something",
        )
        .state("nothing was started")
        .help("remove it, or write primary")),
        Some(_) => Err(bad_value("target_session_attrs", "any, read-write or primary")),
    }
}

/// The server's options, with libpq's variables for a session's defaults.
fn options(values: &Values, environment: &Environment) -> Option<String> {
    let given = values.get("options").map(ToOwned::to_owned);
    let defaults = [("PGTZ", "TimeZone"), ("PGDATESTYLE", "DateStyle"), ("PGGEQO", "geqo")];
    let set = |(variable, setting)| {
        let value = environment.get(variable)?.replace('\\', "\\\\").replace(' ', "\\ ");
        Some(format!("-c {setting}={value}"))
    };
    // The string's own options come last, so they take precedence.
    let all: Vec<_> = defaults.into_iter().filter_map(set).chain(given).collect();
    (!all.is_empty()).then(|| all.join(" "))
}

fn socket_words(values: &Values) -> Result<SocketWords> {
    let off = match values.get("keepalives") {
        None | Some("1") => false,
        Some("0") => true,
        Some(_) => return Err(bad_value("keepalives", "0 or 1")),
    };
    let count = number(values, "keepalives_count")?.filter(|n| *n > 0);
    let user_timeout = number(values, "tcp_user_timeout")?;
    Ok(SocketWords {
        off,
        idle: seconds(values, "keepalives_idle")?,
        interval: seconds(values, "keepalives_interval")?,
        count,
        user_timeout: user_timeout.map(|ms| (ms > 0).then(|| Duration::from_millis(u64::from(ms)))),
    })
}

fn number(values: &Values, name: &str) -> Result<Option<u32>> {
    let Some(text) = values.get(name) else { return Ok(None) };
    text.trim().parse().map(Some).map_err(|_| bad_value(name, "a whole number, not negative"))
}

/// A word in seconds. 0 means that it is not set.
fn seconds(values: &Values, name: &str) -> Result<Option<Duration>> {
    // libpq's older form for "no limit".
    if values.get(name).is_some_and(|text| text.trim().starts_with('-')) && name == "connect_timeout" {
        return Ok(None);
    }
    Ok(number(values, name)?.filter(|n| *n > 0).map(|n| Duration::from_secs(u64::from(n))))
}

/// `spoken`: whether any host is reached over a transport that can use TLS.
fn tls_words(values: &Values, environment: &Environment, spoken: bool) -> Result<TlsWords> {
    let system = values.get("sslrootcert") == Some("system");
    let mode = match values.get("sslmode") {
        Some("disable") => SslMode::Disable,
        Some("allow") => SslMode::Allow,
        Some("prefer") => SslMode::Prefer,
        Some("require") => SslMode::Require,
        Some("verify-ca") => SslMode::VerifyCa,
        Some("verify-full") => SslMode::VerifyFull,
        None if system => SslMode::VerifyFull,
        None => SslMode::Prefer,
        Some(_) => return Err(bad_value("sslmode", "disable, allow, prefer, require, verify-ca or verify-full")),
    };
    let refuse = |what: &str, todo: &str| Error::new(ErrorKind::Config, what).state("nothing was started").help(todo);
    if system && mode < SslMode::VerifyFull {
        return Err(refuse(
            "the connection string's sslrootcert=system trusts every public authority, which proves nothing under a \
             weaker sslmode",
            "write sslmode=verify-full, or leave sslmode out",
        ));
    }
    let direct = match values.get("sslnegotiation") {
        None | Some("postgres") => false,
        Some("direct") => true,
        Some(_) => return Err(bad_value("sslnegotiation", "postgres or direct")),
    };
    if direct && mode < SslMode::Require {
        return Err(refuse(
            "the connection string's sslnegotiation=direct leaves no way to do without TLS, which its sslmode permits",
            "write sslmode=require, verify-ca or verify-full",
        ));
    }
    let given = |name| values.get(name).map(PathBuf::from);
    let usual = |name: &str| in_home(environment, &format!(".postgresql/{name}")).filter(|file| file.exists());
    let roots =
        if system { Some(Roots::System) } else { given("sslrootcert").or_else(|| usual("root.crt")).map(Roots::File) };
    // Like libpq, checks the certificate if a trust root exists.
    let mode = if mode == SslMode::Require && roots.is_some() { SslMode::VerifyCa } else { mode };
    let spoken = spoken && mode != SslMode::Disable;
    if spoken && mode >= SslMode::VerifyCa && roots.is_none() {
        return Err(refuse(
            "the connection string asks to verify the server's certificate, and names nobody to trust",
            "name the authority's file by sslrootcert, or write sslrootcert=system",
        ));
    }
    let certificate = if !spoken || values.get("sslcertmode") == Some("disable") {
        None
    } else {
        given("sslcert").or_else(|| usual("postgresql.crt"))
    };
    let identity = match certificate {
        None => None,
        Some(certificate) => {
            let key = given("sslkey").or_else(|| usual("postgresql.key")).ok_or_else(|| {
                refuse(
                    "the connection string has a client certificate and no key for it",
                    "name the key's file by sslkey",
                )
            })?;
            Some((certificate, key))
        }
    };
    let sni = match values.get("sslsni") {
        None | Some("1") => true,
        Some("0") => false,
        Some(_) => return Err(bad_value("sslsni", "0 or 1")),
    };
    Ok(TlsWords {
        mode,
        direct,
        roots,
        revocations: given("sslcrl").or_else(|| usual("root.crl")),
        identity,
        sni,
        versions: tls_versions(values)?,
    })
}

fn tls_versions(values: &Values) -> Result<(bool, bool)> {
    let least = match values.get("ssl_min_protocol_version") {
        // Versions older than 1.2 are never used.
        None | Some("TLSv1" | "TLSv1.1" | "TLSv1.2") => 2,
        Some("TLSv1.3") => 3,
        Some(_) => return Err(bad_value("ssl_min_protocol_version", "TLSv1, TLSv1.1, TLSv1.2 or TLSv1.3")),
    };
    let most = if values.get("ssl_max_protocol_version") == Some("TLSv1.2") { 2 } else { 3 };
    if least > most {
        return Err(bad_value("ssl_max_protocol_version", "no older than ssl_min_protocol_version"));
    }
    Ok((least == 2, most == 3))
}

fn in_home(environment: &Environment, file: &str) -> Option<PathBuf> {
    environment.get("HOME").map(|home| PathBuf::from(home).join(file))
}

#[cfg(test)]
mod beside_libpq;
#[cfg(test)]
mod document;
#[cfg(test)]
mod tests;
