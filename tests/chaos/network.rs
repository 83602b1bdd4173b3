//! Networks whose weather a test makes: the server in a namespace of its own, each pod in another, and between them a
//! wire that this program carries, packet by packet. On both ends are the kernel's own TCP stacks; what the wire loses
//! or delays they see as they would on any network. Nothing of it can be reached from outside, and all of it is gone
//! when this program is.
//!
//! `tc netem` does the same where the kernel has it; many do not.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use podlock::throwaway::{Builder, Server};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tun::Tun;

/// Of a range that is kept for documentation, so that nobody's network is meant.
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const MTU: i32 = 1400;

/// A network namespace. It is gone when its last process and this are.
struct Namespace(File);

impl Namespace {
    fn new() -> Self {
        let namespace = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            File::open("/proc/thread-self/ns/net").expect("the namespace")
        });
        let namespace = Self(namespace);
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// What comes before a command that is to run inside.
    fn prefix(&self) -> Vec<String> {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        vec!["nsenter".to_owned(), format!("--net={path}"), "--".to_owned()]
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_a_thread(|| {
            setns(&self.0, CloneFlags::CLONE_NEWNET).expect("the namespace is entered");
            work()
        })
    }

    fn ip(&self, words: &[&str]) {
        run(&self.prefix(), "ip", words);
    }
}

/// A thread can enter a namespace, and only for itself.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn run(prefix: &[String], program: &str, words: &[&str]) -> String {
    let (first, rest) = prefix.split_first().expect("a prefix");
    let output = Command::new(first).args(rest).arg(program).args(words).output().expect("a program");
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What happens to packets in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Weather {
    pub(crate) delay: Duration,
    /// Which share is lost: 1.0 is a cut.
    pub(crate) loss: f64,
}

impl Weather {
    pub(crate) const CUT: Self = Self { delay: Duration::ZERO, loss: 1.0 };
    pub(crate) const FAIR: Self = Self { delay: Duration::ZERO, loss: 0.0 };
}

type Shared = Arc<Mutex<Weather>>;

/// The server's side, and how many pods are connected to it.
pub(crate) struct Network {
    server: Namespace,
    links: u8,
}

/// A pod's place in the network.
pub(crate) struct Link {
    pod: Namespace,
    address: Ipv4Addr,
    to_server: Shared,
    to_pod: Shared,
    carriers: Vec<tokio::task::JoinHandle<()>>,
}

impl Network {
    pub(crate) fn new() -> Self {
        let server = Namespace::new();
        server.ip(&["address", "add", &format!("{SERVER}/32"), "dev", "lo"]);
        Self { server, links: 0 }
    }

    /// Starts a server in here. Blocks.
    pub(crate) fn start(&self, builder: Builder) -> Server {
        // What starts and watches the server is a thread that inherits the namespace.
        self.server.inside(|| builder.listen(IpAddr::V4(SERVER)).start().expect("a throwaway PostgreSQL"))
    }

    /// The address at which pods find the server.
    pub(crate) fn address() -> IpAddr {
        IpAddr::V4(SERVER)
    }

    /// A new place for a pod, with fair weather.
    pub(crate) fn link(&mut self) -> Link {
        self.links += 1;
        let number = self.links;
        let address = Ipv4Addr::new(198, 51, 100, 10 + number);
        let pod = Namespace::new();
        let end_of_server = self.server.inside(in_runtime(move || device(&format!("pod{number}"), SERVER, address)));
        let end_of_pod = pod.inside(in_runtime(move || device("server", address, SERVER)));
        let (to_server, to_pod) = (Shared::default(), Shared::default());
        let carriers = vec![
            carry(Arc::clone(&end_of_pod), Arc::clone(&end_of_server), Arc::clone(&to_server)),
            carry(end_of_server, end_of_pod, Arc::clone(&to_pod)),
        ];
        Link { pod, address, to_server, to_pod, carriers }
    }

    /// A new place that also reaches the other places, by way of the server's: a node of a cluster.
    pub(crate) fn routed_link(&mut self) -> Link {
        // This file says it for the namespace of the thread that writes it.
        let forward = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1");
        self.server.inside(forward).expect("the server's side forwards packets");
        let link = self.link();
        link.pod.ip(&["route", "add", "default", "dev", "server"]);
        link
    }

    /// What comes before a command that is to run on the server's side.
    pub(crate) fn prefix(&self) -> Vec<String> {
        self.server.prefix()
    }
}

impl Link {
    pub(crate) fn prefix(&self) -> Vec<String> {
        self.pod.prefix()
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub(crate) fn weather(&self, to_server: Weather, to_pod: Weather) {
        *self.to_server.lock().unwrap_or_else(PoisonError::into_inner) = to_server;
        *self.to_pod.lock().unwrap_or_else(PoisonError::into_inner) = to_pod;
    }

    pub(crate) fn cut(&self) {
        self.weather(Weather::CUT, Weather::CUT);
    }

    pub(crate) fn mend(&self) {
        self.weather(Weather::FAIR, Weather::FAIR);
    }

    /// Resets those of the pod's connections that have these local ports, in one go: both sides see it at once. Returns
    /// how many were there.
    pub(crate) fn reset(&self, ports: &[u16]) -> usize {
        if ports.is_empty() {
            return 0;
        }
        let any: Vec<String> = ports.iter().map(|port| format!("sport = :{port}")).collect();
        let filter = any.join(" or ");
        let mut words = vec!["--kill", "--tcp", "--numeric", "--no-header"];
        words.extend(filter.split(' '));
        run(&self.pod.prefix(), "ss", &words).lines().count()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for carrier in &self.carriers {
            carrier.abort();
        }
    }
}

/// Lets `work` register with the runtime that calls this.
fn in_runtime<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let runtime = tokio::runtime::Handle::current();
    move || {
        let _entered = runtime.enter();
        work()
    }
}

/// One end of a wire, in the namespace of the thread that calls this.
fn device(name: &str, own: Ipv4Addr, other: Ipv4Addr) -> Arc<Tun> {
    let devices = Tun::builder().name(name).mtu(MTU).address(own).destination(other).up().build();
    Arc::new(devices.expect("a TUN device").pop().expect("one of them"))
}

/// Carries packets one way, in their order, each as the weather is when it comes.
fn carry(from: Arc<Tun>, to: Arc<Tun>, weather: Shared) -> tokio::task::JoinHandle<()> {
    let (queue, mut queued) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        let receive = async {
            let mut packet = vec![0; 2048];
            while let Ok(length) = from.recv(&mut packet).await {
                let Weather { delay, loss } = *weather.lock().unwrap_or_else(PoisonError::into_inner);
                if fastrand::f64() >= loss && queue.send((Instant::now() + delay, packet[..length].to_vec())).is_err() {
                    return;
                }
            }
        };
        let send = async {
            while let Some((due, packet)) = queued.recv().await {
                tokio::time::sleep_until(due).await;
                // A device whose namespace is on its way out takes none; the receiving side ends this.
                let _ = to.send(&packet).await;
            }
        };
        tokio::join!(receive, send);
    })
}
