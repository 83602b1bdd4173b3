//! A TCP proxy between a pod and the server. Its links bear the role that the session gave itself (`liveness`,
//! `control`, `watch`, `pool`), and a test decides what flows on which.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What a link does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Pass,
    /// So many bytes a second pass, each way and on each link.
    Rate(u32),
    /// Requests arrive, replies are swallowed.
    Mute,
    /// Nothing arrives anywhere, and nobody is told: a silent partition. What was sent waits.
    Hole,
    /// Closed.
    Cut,
}

/// Every role that a pod's connections have.
pub(crate) const ALL: [&str; 5] = ["liveness", "control", "watch", "pool", "migrate"];

/// What a client asks first that would like TLS. The proxy has none, as the servers behind it.
pub(super) const SSL_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();

pub(crate) struct Proxy {
    port: u16,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    links: Mutex<Vec<Link>>,
    /// What new links of a role do at first, where it is not to pass.
    rules: Mutex<Vec<(String, Flow)>>,
}

struct Link {
    role: String,
    /// The port that the server sees; 0 until there is one.
    port: Arc<AtomicU16>,
    flow: watch::Sender<Flow>,
}

impl Proxy {
    /// A proxy before the server on this port of 127.0.0.1.
    pub(crate) async fn before(upstream: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(State::default());
        let for_task = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut links = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let state = Arc::clone(&for_task);
                links.spawn(async move {
                    // A link that cannot be made is closed, which is what its client should see.
                    let _ = link(client, upstream, &state).await;
                });
            }
        });
        Self { port, state, task }
    }

    /// `url`, through this proxy.
    pub(crate) fn url(&self, url: &str, upstream: u16) -> String {
        let through = url.replace(&format!(":{upstream}/"), &format!(":{}/", self.port));
        assert_ne!(url, through, "the URL names the server's port");
        through
    }

    /// Changes the links of these roles that are there now.
    pub(crate) fn present(&self, roles: &[&str], flow: Flow) -> usize {
        let mut links = lock(&self.state.links);
        links.retain(|link| !link.flow.is_closed());
        let hit = links.iter().filter(|link| roles.contains(&link.role.as_str()));
        hit.inspect(|link| _ = link.flow.send_replace(flow)).count()
    }

    /// Changes the one link that the server knows by this `client_port`.
    pub(crate) fn one(&self, client_port: u16, flow: Flow) {
        let links = lock(&self.state.links);
        let link = links.iter().find(|link| link.port.load(Ordering::Acquire) == client_port);
        link.expect("the proxy has this link").flow.send_replace(flow);
    }

    /// Changes what links of these roles do that come from now on.
    pub(crate) fn future(&self, roles: &[&str], flow: Flow) {
        let mut rules = lock(&self.state.rules);
        rules.retain(|(role, _)| !roles.contains(&role.as_str()));
        rules.extend(roles.iter().map(|role| ((*role).to_owned(), flow)));
    }

    /// Changes the links of these roles, those that are there and those to come.
    pub(crate) fn all(&self, roles: &[&str], flow: Flow) {
        self.future(roles, flow);
        self.present(roles, flow);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn link(mut client: TcpStream, upstream: u16, state: &State) -> std::io::Result<()> {
    let (length, startup) = loop {
        let length = client.read_u32().await?;
        let mut startup = vec![0; (length as usize).saturating_sub(4)];
        client.read_exact(&mut startup).await?;
        if startup != SSL_REQUEST {
            break (length, startup);
        }
        client.write_all(b"N").await?;
    };
    let role = role_of(&startup);
    let first = lock(&state.rules).iter().find(|(r, _)| *r == role).map_or(Flow::Pass, |(_, flow)| *flow);
    let (flow, seen) = watch::channel(first);
    let port = Arc::new(AtomicU16::new(0));
    lock(&state.links).push(Link { role, port: Arc::clone(&port), flow });
    let mut seen_here = seen.clone();
    if through(&mut seen_here).await == Flow::Cut {
        return Ok(());
    }
    let mut server = TcpStream::connect(("127.0.0.1", upstream)).await?;
    port.store(server.local_addr()?.port(), Ordering::Release);
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    server.write_u32(length).await?;
    server.write_all(&startup).await?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, seen.clone(), false) => {}
        () = pump(from_server, to_client, seen, true) => {}
    }
    Ok(())
}

/// The last part of the startup message's `application_name`; empty for a cancel request.
fn role_of(startup: &[u8]) -> String {
    let mut words = startup.get(4..).unwrap_or_default().split(|b| *b == 0);
    let name = words.find(|w| *w == b"application_name").and_then(|_| words.next()).unwrap_or_default();
    String::from_utf8_lossy(name).rsplit('/').next().unwrap_or_default().to_owned()
}

/// What flows once it is more than a hole.
async fn through(flow: &mut watch::Receiver<Flow>) -> Flow {
    // The sender lives in the proxy; without it the link is over.
    flow.wait_for(|f| *f != Flow::Hole).await.map_or(Flow::Cut, |f| *f)
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flow: watch::Receiver<Flow>, replies: bool) {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        if through(&mut flow).await == Flow::Cut {
            return;
        }
        flow.borrow_and_update();
        let count = tokio::select! {
            biased;
            changed = flow.changed() => {
                if changed.is_err() { return }
                continue;
            }
            read = from.read(&mut bytes) => match read {
                Ok(count) if count > 0 => count,
                _ => return,
            },
        };
        match through(&mut flow).await {
            Flow::Cut => return,
            Flow::Mute if replies => {}
            passes => {
                if let Flow::Rate(bytes_a_second) = passes {
                    let share = f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / f64::from(bytes_a_second);
                    tokio::time::sleep(Duration::from_secs_f64(share)).await;
                }
                if to.write_all(&bytes[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
