//! Connections: the name lookup, and a TCP connection.
//!
//! The system's lookup blocks a thread and cannot be stopped. While the name server does not answer, each lookup takes
//! such a thread for up to half a minute, much longer than its request. The runtime has 512 of these threads, for the
//! whole service. So the number of lookups is limited, and one that nobody waits for any more still counts.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use url::{Host, Url};

use super::failure::{Failure, Limit};

/// How many lookups of a pod may be under way: 32. Fewer delay the probes of many workers with names. More take threads
/// from the service while the name server does not answer.
const LOOKUPS_AT_ONCE: usize = 32;

/// Makes connections, and limits how many lookups are under way.
pub(crate) struct Dialer {
    /// A lookup holds a permit until its thread is free.
    lookups: Arc<Semaphore>,
}

impl Dialer {
    pub(crate) fn new() -> Self {
        Self { lookups: Arc::new(Semaphore::new(LOOKUPS_AT_ONCE)) }
    }

    /// Connects to the host and the port of the URL. Several addresses are tried in turn.
    pub(crate) async fn connect(&self, url: &Url, limit: Limit) -> Result<TcpStream, Failure> {
        let port = url.port_or_known_default().ok_or_else(|| impossible("the URL has no port"))?;
        let addresses = match url.host() {
            Some(Host::Ipv4(ip)) => vec![SocketAddr::from((ip, port))],
            Some(Host::Ipv6(ip)) => vec![SocketAddr::from((ip, port))],
            // A URL whose scheme the library does not know keeps an IPv4 address as a name. The lookup takes both.
            Some(Host::Domain(name)) => {
                limit.wait("looking up the name of the host", self.look_up(name, port)).await??
            }
            None => return Err(impossible("the URL has no host")),
        };
        let connected = limit.wait("connecting", TcpStream::connect(&addresses[..])).await?;
        connected.map_err(|e| Failure::Unconnected { why: format!("{e}, at {}", listed(&addresses)) })
    }

    async fn look_up(&self, name: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        let unresolved = |why: String| Failure::Unresolved { host: name.to_owned(), why };
        let permit = Arc::clone(&self.lookups).acquire_owned().await.map_err(|e| unresolved(e.to_string()))?;
        let asked = name.to_owned();
        let lookup = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            (asked.as_str(), port).to_socket_addrs().map(Vec::from_iter)
        });
        match lookup.await {
            Ok(Ok(addresses)) if addresses.is_empty() => Err(unresolved("the lookup found none".to_owned())),
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(e)) => Err(unresolved(e.to_string())),
            Err(e) => Err(unresolved(e.to_string())),
        }
    }
}

fn impossible(why: &str) -> Failure {
    Failure::Impossible { why: why.to_owned() }
}

fn listed(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" and ")
}
