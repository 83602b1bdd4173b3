//! A real high-availability cluster: PostgreSQL on three nodes, each under Debian's Patroni, and etcd.
//!
//! The nodes are on the loopback interface. Or each of them is on a link of its own, which a test can cut; etcd is then
//! on the other side of all links.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;
use tokio_postgres::Client;

use crate::inherited;
use crate::network::{Link, Network};
use crate::own_server::shared_server;
use crate::patience::SOON;
use crate::pod::now_ns;
use crate::ports;
use crate::standby::{Receiver, account};
use crate::world::{World, eventually, try_connect};

/// How long Patroni's leader key lives without renewal. With the two times below it is the shortest for which Patroni's
/// manual has a leader that lost etcd step down before another can be elected: `loop_wait` + 2 `retry_timeout` <= `ttl`.
pub(crate) const TTL: Duration = Duration::from_secs(5);
const LOOP_WAIT_SECS: u64 = 1;
const RETRY_TIMEOUT_SECS: u64 = 2;

const NAMES: [&str; 3] = ["n1", "n2", "n3"];
const SUPERUSER: &str = "postgres";
const PASSWORD: &str = "hunter2cluster";
/// How long a node's PostgreSQL may take to stop.
const END: Duration = Duration::from_secs(5);
/// How often the nodes are looked at while another leader is awaited.
const LOOK: Duration = Duration::from_millis(10);

/// Whether commits wait for a standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replication {
    Synchronous,
    Asynchronous,
}

/// Its processes end with it, and with the thread that started them.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    etcd: Child,
    /// If each node is on a link of its own.
    network: Option<(Network, Vec<Link>)>,
    /// `None` once it is being dropped.
    dir: Option<TempDir>,
}

struct Node {
    address: Ipv4Addr,
    postgres: u16,
    rest: u16,
    /// What comes before a command that is to run on this node.
    prefix: Vec<String>,
    /// The node's own directory: its settings, its logs, its sockets.
    dir: PathBuf,
    /// `None` while it is dead.
    patroni: Option<Child>,
}

/// One leader's end and the next one's beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Succession {
    /// When the old leader's sessions ended.
    pub(crate) ended: u64,
    /// When the new leader took writes.
    pub(crate) begun: u64,
}

impl Cluster {
    /// Three nodes on the loopback interface. Must be called on a thread that lives as long as the cluster is to.
    pub(crate) async fn start(replication: Replication) -> Self {
        let place = || (Ipv4Addr::LOCALHOST, ports::free(), ports::free(), Vec::new());
        let places = NAMES.map(|_| place());
        Self::on(Ipv4Addr::LOCALHOST, &[], [ports::free(), ports::free()], places, None, replication).await
    }

    /// The same, with each node on a link of its own.
    pub(crate) async fn networked(replication: Replication) -> Self {
        let mut network = Network::new();
        let links: Vec<Link> = NAMES.iter().map(|_| network.routed_link()).collect();
        let places = [0, 1, 2].map(|n: usize| (links[n].address(), 5432, 8008, links[n].prefix()));
        let std::net::IpAddr::V4(etcd) = Network::address() else { unreachable!("the network has IPv4 addresses") };
        let prefix = network.prefix();
        Self::on(etcd, &prefix, [2379, 2380], places, Some((network, links)), replication).await
    }

    async fn on(
        etcd: Ipv4Addr,
        etcd_prefix: &[String],
        etcd_ports: [u16; 2],
        places: [(Ipv4Addr, u16, u16, Vec<String>); 3],
        network: Option<(Network, Vec<Link>)>,
        replication: Replication,
    ) -> Self {
        let bin_dir = shared_server().await.bin_dir().to_owned();
        let dir = tempfile::Builder::new().prefix("podlock-patroni-").tempdir().expect("a directory");
        give_to_account(dir.path());
        let started = start_etcd(dir.path(), etcd_prefix, etcd, etcd_ports);
        let mut nodes = Vec::new();
        for (name, (address, postgres, rest, prefix)) in NAMES.iter().zip(places) {
            let own = dir.path().join(name);
            std::fs::create_dir(&own).expect("a node's directory");
            give_to_account(&own);
            let mut node = Node { address, postgres, rest, prefix, dir: own, patroni: None };
            let settings = node.settings(name, &format!("{etcd}:{}", etcd_ports[0]), &bin_dir, replication);
            std::fs::write(node.dir.join("patroni.yml"), settings).expect("the node's settings");
            node.start();
            nodes.push(node);
        }
        let cluster = Self { nodes, etcd: started, network, dir: Some(dir) };
        cluster.is_whole(replication).await;
        cluster
    }

    /// Waits until one node leads and the two others follow, one of them synchronously if that is asked for.
    pub(crate) async fn is_whole(&self, replication: Replication) {
        eventually(SOON, "one node leads, and two follow", async || {
            let (_, client) = self.find_leader().await.ok_or("no node leads")?;
            // A base backup streams, too, under another name.
            let sql = "SELECT application_name, sync_state FROM pg_stat_replication \
                       WHERE state = 'streaming' AND application_name = ANY($1)";
            let rows = client.query(sql, &[&&NAMES[..]]).await.map_err(|e| e.to_string())?;
            let follow: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            let synchronous = follow.iter().any(|(_, state)| state == "sync");
            let as_asked = synchronous == (replication == Replication::Synchronous);
            if follow.len() == 2 && as_asked { Ok(()) } else { Err(format!("{follow:?}")) }
        })
        .await;
    }

    async fn find_leader(&self) -> Option<(usize, Client)> {
        for (index, node) in self.nodes.iter().enumerate() {
            if let Some(client) = node.leads().await {
                return Some((index, client));
            }
        }
        None
    }

    /// The node that leads.
    pub(crate) async fn leader(&self) -> usize {
        let look = async || self.find_leader().await.map(|(index, _)| index).ok_or_else(|| "no node leads".to_owned());
        eventually(SOON, "a node leads", look).await
    }

    /// For a superuser, over a socket of the node's.
    pub(crate) fn socket_url(&self, node: usize, database: &str) -> String {
        let Node { dir, postgres, .. } = &self.nodes[node];
        format!("host={} port={postgres} user={SUPERUSER} dbname={database}", dir.display())
    }

    /// The addresses of all nodes, in a list as connection strings have it.
    pub(crate) fn hosts(&self) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(|node| format!("{}:{}", node.address, node.postgres)).collect();
        hosts.join(",")
    }

    /// What comes before a command that is to run on the other side of all links.
    pub(crate) fn beside_etcd(&self) -> Vec<String> {
        self.network.as_ref().map(|(network, _)| network.prefix()).unwrap_or_default()
    }

    /// What comes before a command that is to run on a node.
    pub(crate) fn beside(&self, node: usize) -> Vec<String> {
        self.nodes[node].prefix.clone()
    }

    /// Asks for a switchover to the standby that is best suited, and returns once that is under way.
    pub(crate) fn switches_over(&self, leader: usize) -> tokio::task::JoinHandle<()> {
        let Node { address, rest, .. } = &self.nodes[leader];
        let url = format!("http://{address}:{rest}/switchover");
        let body = json!({ "leader": NAMES[leader] });
        tokio::spawn(async move {
            let client = reqwest::Client::builder().no_proxy().build().expect("a client");
            // Patroni refuses while its standbys have not yet written down that they follow.
            eventually(SOON, "the switchover is made", async || {
                let answer = client.post(&url).json(&body).send().await.map_err(|e| e.to_string())?;
                let (status, said) = (answer.status(), answer.text().await.unwrap_or_default());
                if status.is_success() { Ok(()) } else { Err(format!("{status}: {said}")) }
            })
            .await;
        })
    }

    /// Kills a node's Patroni and PostgreSQL.
    pub(crate) fn kill(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let postmaster = node.postmaster().expect("its PostgreSQL runs");
        let mut patroni = node.patroni.take().expect("its Patroni runs");
        patroni.kill().expect("Patroni is killed");
        kill_process(postmaster, Signal::KILL).expect("PostgreSQL is killed");
        patroni.wait().expect("Patroni is reaped");
    }

    /// Starts a node's Patroni again, which starts its PostgreSQL.
    pub(crate) fn starts_again(&mut self, node: usize) {
        self.nodes[node].start();
    }

    /// Nothing comes from a node any more, and nothing reaches it, but for what runs on the node itself.
    pub(crate) fn cut(&self, node: usize) {
        self.link(node).cut();
    }

    pub(crate) fn mend(&self, node: usize) {
        self.link(node).mend();
    }

    fn link(&self, node: usize) -> &Link {
        let (_, links) = self.network.as_ref().expect("each node is on a link of its own");
        &links[node]
    }

    /// Stops what receives the leader's log on each standby. What the leader commits from now on is not replicated.
    pub(crate) async fn standbys_hang(&self, leader: usize) -> Vec<Receiver> {
        let mut stopped = Vec::new();
        for standby in (0..self.nodes.len()).filter(|node| *node != leader) {
            let client = try_connect(&self.socket_url(standby, "postgres")).await.expect("the standby answers");
            let row = client.query_one("SELECT pid FROM pg_stat_wal_receiver", &[]).await.expect("it follows");
            let receiver = Receiver::of(row.get(0));
            receiver.stops();
            stopped.push(receiver);
        }
        stopped
    }

    /// Waits until another node than `old` takes writes. `world` has a session on the old leader, whose end is waited
    /// for, too. The world then looks at the new leader.
    pub(crate) async fn succession(&self, old: usize, world: &mut World) -> Succession {
        let began = Instant::now();
        let (mut ended, mut next) = (None, None);
        loop {
            if ended.is_none() && world.admin.is_closed() {
                ended = Some(now_ns());
            }
            if next.is_none() {
                for node in (0..self.nodes.len()).filter(|node| *node != old) {
                    if self.nodes[node].leads().await.is_some() {
                        next = Some((now_ns(), node));
                    }
                }
            }
            if let (Some(ended), Some((begun, leader))) = (ended, next) {
                world.moves_to(self.socket_url(leader, &world.database)).await;
                return Succession { ended, begun };
            }
            assert!(began.elapsed() < SOON, "the old leader's end: {ended:?}; the new one's beginning: {next:?}");
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Node {
    /// What Patroni reads. JSON is YAML.
    fn settings(&self, name: &str, etcd: &str, bin_dir: &Path, replication: Replication) -> String {
        let (rest, postgres) =
            (format!("{}:{}", self.address, self.rest), format!("{}:{}", self.address, self.postgres));
        let account = |name: &str| json!({ "username": name, "password": PASSWORD });
        let settings = json!({
            "scope": "chaos",
            "name": name,
            "etcd3": { "host": etcd },
            "restapi": { "listen": rest, "connect_address": rest },
            "bootstrap": {
                "dcs": {
                    "ttl": TTL.as_secs(),
                    "loop_wait": LOOP_WAIT_SECS,
                    "retry_timeout": RETRY_TIMEOUT_SECS,
                    "synchronous_mode": replication == Replication::Synchronous,
                    "postgresql": {
                        "use_pg_rewind": true,
                        "parameters": { "max_connections": 200, "wal_log_hints": "on" },
                    },
                },
                "initdb": [
                    { "encoding": "UTF8" }, { "locale": "C" }, { "auth-local": "trust" }, { "auth-host": "scram-sha-256" },
                ],
            },
            "postgresql": {
                "listen": postgres,
                "connect_address": postgres,
                "bin_dir": bin_dir,
                "data_dir": self.data(),
                "pgpass": self.dir.join("pgpass"),
                "use_unix_socket": true,
                "authentication": { "superuser": account(SUPERUSER), "replication": account("replicator") },
                "pg_hba": [
                    "local all all trust",
                    "host replication replicator all scram-sha-256",
                    "host all all all scram-sha-256",
                ],
                "parameters": {
                    "unix_socket_directories": self.dir,
                    "fsync": "off",
                    "shared_buffers": "32MB",
                    "dynamic_shared_memory_type": "mmap",
                },
            },
        });
        settings.to_string()
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("patroni.log")).expect("a log");
        let mut command = command(&self.prefix, "TERM", "patroni", &log);
        command.arg(self.dir.join("patroni.yml")).env("HOME", &self.dir).current_dir(&self.dir);
        self.patroni = Some(command.spawn().expect("Patroni begins"));
    }

    /// A superuser's session on it, if it takes writes.
    async fn leads(&self) -> Option<Client> {
        let url = format!("host={} port={} user={SUPERUSER} dbname=postgres", self.dir.display(), self.postgres);
        let look = async {
            let client = try_connect(&url).await.ok()?;
            let standby: bool = client.query_one("SELECT pg_is_in_recovery()", &[]).await.ok()?.get(0);
            (!standby).then_some(client)
        };
        tokio::time::timeout(Duration::from_secs(1), look).await.ok().flatten()
    }

    /// The first process of its PostgreSQL, if there is one.
    fn postmaster(&self) -> Option<Pid> {
        let data = self.data();
        let file = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let pid: i32 = file.lines().next()?.trim().parse().ok()?;
        // The file may be one that a killed server left behind.
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let is_ours = String::from_utf8_lossy(&words).contains(data.to_str()?);
        Pid::from_raw(pid).filter(|_| is_ours)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut patroni) = node.patroni.take() {
                let _ = patroni.kill();
                let _ = patroni.wait();
            }
        }
        // Immediately, and by the servers themselves: killed, they would leave shared memory behind.
        for pid in self.nodes.iter().filter_map(Node::postmaster) {
            let _ = kill_process(pid, Signal::QUIT);
        }
        let began = Instant::now();
        while self.nodes.iter().any(|node| node.postmaster().is_some()) && began.elapsed() < END {
            std::thread::sleep(Duration::from_millis(10));
        }
        for pid in self.nodes.iter().filter_map(Node::postmaster) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("the logs of the cluster's nodes are in {}", dir.keep().display());
        }
    }
}

fn start_etcd(dir: &Path, prefix: &[String], address: Ipv4Addr, [clients, peers]: [u16; 2]) -> Child {
    let log = std::fs::File::create(dir.join("etcd.log")).expect("a log");
    let (clients, peers) = (format!("http://{address}:{clients}"), format!("http://{address}:{peers}"));
    let mut command = command(prefix, "KILL", "etcd", &log);
    command.args(["--name", "etcd", "--data-dir"]).arg(dir.join("etcd"));
    command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
    command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
    command.args(["--initial-cluster", &format!("etcd={peers}")]);
    command.spawn().expect("etcd begins")
}

/// A program that is not run as root, and is sent `signal` when the thread that spawns it ends.
fn command(prefix: &[String], signal: &str, program: &str, log: &std::fs::File) -> Command {
    let mut words = prefix.to_vec();
    words.push("setpriv".to_owned());
    if let Some((uid, gid)) = account() {
        words.extend([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
    }
    words.extend(["--pdeathsig", signal, "--", program].map(str::to_owned));
    let mut command = Command::new(&words[0]);
    inherited::clean(&mut command);
    let output = || log.try_clone().expect("the log");
    command.args(&words[1..]).env("LC_ALL", "C").stdin(Stdio::null()).stdout(output()).stderr(output());
    command
}

fn give_to_account(path: &Path) {
    if let Some((uid, gid)) = account() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("chown");
    }
}
