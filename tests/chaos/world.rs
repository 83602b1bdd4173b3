//! A database with its history, and the pods on it.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use podlock::migrate::{self, Access};
use podlock::protocol::fold::{self, LogEntry};
use podlock::{Config, Incarnation, PodId, Settings, WorstCase};
use tokio::process::Command;
use tokio_postgres::{Client, NoTls};

use crate::checker::{self, Excused, Missing, check};
use crate::history::{self, PodLog, Said};
use crate::network::{Link, Network};
use crate::own_server::{OwnServer, shared_server};
use crate::patroni::Cluster;
use crate::pod::{Input, Order, now_ns};
use crate::process::{self, Process};
use crate::workers::{self, Workers};

/// The lease of the suite: what a loaded machine with two cores keeps, and short enough to wait it out.
pub(crate) const LEASE: Duration = Duration::from_secs(4);
/// How long a pod may take to start.
pub(crate) const START: Duration = crate::patience::SOON;

/// What this machine may add to a bound now.
pub(crate) fn slack() -> Duration {
    crate::patience::slack(Duration::from_millis(1500))
}

const PASSWORD: &str = "hunter2secret";

/// A database of its own with podlock's tables, the history's triggers, and pods on it.
pub(crate) struct World {
    pub(crate) server: OwnServer,
    pub(crate) database: String,
    /// Of the pods.
    pub(crate) role: String,
    pub(crate) lease: Duration,
    /// What pods connect to, unless a scenario says otherwise.
    pub(crate) url: String,
    /// A superuser's connection over a unix socket; made anew by [`World::reconnect`].
    pub(crate) admin: Client,
    /// Where that goes: to the server, or to the one that took its place.
    admin_url: String,
    pub(crate) pods: BTreeMap<String, Process>,
    /// Where each pod is, if the server is in a network of its own.
    network: Option<Network>,
    pub(crate) links: BTreeMap<String, Link>,
    /// The workers of each pod that is started from now on. `None`: pods do not use the registry.
    pub(crate) workers: Option<Workers>,
    /// What processes said that are gone.
    logs: Vec<PodLog>,
    dir: tempfile::TempDir,
    /// Until the scenario has come to its end.
    keeps_logs: bool,
    /// The figures of this scenario, for the page.
    pub(crate) figures: Vec<Figure>,
}

/// How long something took, beside its bound.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) what: &'static str,
    pub(crate) took: Duration,
    pub(crate) bound: Option<Duration>,
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ms", self.what, self.took.as_millis())?;
        self.bound.map_or(Ok(()), |bound| write!(f, " (bound {} ms)", bound.as_millis()))
    }
}

/// How a pod stands, by its row and by the locks that are really held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodStatus {
    pub(crate) incarnation: String,
    /// How many liveness sessions the incarnation has had.
    pub(crate) session: i64,
    pub(crate) liveness: i32,
    pub(crate) control: Option<i32>,
    /// It holds both of its locks.
    pub(crate) whole: bool,
    pub(crate) runs: i64,
}

impl World {
    /// On the server that scenarios share.
    pub(crate) async fn shared() -> Self {
        Self::on(shared_server().await).await
    }

    /// On a server of its own with these settings, which a scenario may harm.
    pub(crate) async fn own(settings: &[(&str, &str)]) -> Self {
        let builder = settings.iter().fold(crate::inherited::postgres(), |b, (name, value)| b.setting(*name, *value));
        Self::on(OwnServer::start(builder).await).await
    }

    /// On a server in a network of its own, where each pod has its own link to it.
    pub(crate) async fn networked(settings: &[(&str, &str)]) -> Self {
        let builder = settings.iter().fold(crate::inherited::postgres(), |b, (name, value)| b.setting(*name, *value));
        let start = || {
            let network = Network::new();
            let server = network.start(builder);
            (network, server)
        };
        let (network, server) = tokio::task::spawn_blocking(start).await.expect("a network");
        let mut world = Self::on(OwnServer::from(server)).await;
        world.url = world.url.replace("127.0.0.1", &Network::address().to_string());
        world.network = Some(network);
        world
    }

    pub(crate) async fn on(server: OwnServer) -> Self {
        Self::empty(server).await.migrated().await
    }

    /// On the node that leads a cluster. Pods are given the addresses of all its nodes.
    pub(crate) async fn on_cluster(cluster: &Cluster) -> Self {
        let leader = cluster.leader().await;
        let socket_url = |database: &str| cluster.socket_url(leader, database);
        let mut world = Self::at(OwnServer::none(), &cluster.hosts(), socket_url).await.migrated().await;
        world.url += "?target_session_attrs=read-write";
        // A standby that does not know the role yet refuses its login, which ends a pod's search for the primary.
        world.is_replicated().await;
        world
    }

    /// Waits until every standby has applied all that is committed now.
    pub(crate) async fn is_replicated(&self) {
        let written = self.admin.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("the log's end");
        let written: String = written.get(0);
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn < $1::text::pg_lsn";
        self.until(START, "every standby has what is committed", async |client| {
            let behind: i64 = client.query_one(sql, &[&written]).await.map_err(|e| e.to_string())?.get(0);
            if behind == 0 { Ok(()) } else { Err(format!("{behind} are behind")) }
        })
        .await;
    }

    async fn migrated(self) -> Self {
        let world = self;
        migrate::up(&Config::new(&world.admin_url)).await.expect("the schema");
        let rights = migrate::grants("public", &world.role, Access::Pod);
        world.admin.batch_execute(&rights).await.expect("the pods' rights");
        world.admin.batch_execute(history::INSTALL).await.expect("the history's triggers");
        world
    }

    /// Without any tables: they are the pods' own to make. The history begins with them.
    pub(crate) async fn unmigrated(server: OwnServer) -> Self {
        let world = Self::empty(server).await;
        let may_create = format!("GRANT CREATE ON SCHEMA public TO {}", world.role);
        world.admin.batch_execute(&may_create).await.expect("the right to create tables");
        world.admin.batch_execute(&history::install_ahead()).await.expect("the history's event trigger");
        world
    }

    async fn empty(server: OwnServer) -> Self {
        let hosts = format!("127.0.0.1:{}", server.port());
        let of = server.clone();
        Self::at(server, &hosts, |database| of.socket_url(database)).await
    }

    /// Where a superuser finds the databases at `socket_url`, and pods at `hosts`.
    async fn at(server: OwnServer, hosts: &str, socket_url: impl Fn(&str) -> String) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let database = format!("chaos_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let role = role_of(&database);
        let cluster = connect(&socket_url("postgres")).await;
        for statement in [
            format!("CREATE DATABASE {database}"),
            format!("CREATE ROLE {role} LOGIN NOSUPERUSER PASSWORD '{PASSWORD}'"),
        ] {
            cluster.batch_execute(&statement).await.expect("a database and a role");
        }
        let admin_url = socket_url(&database);
        let admin = connect(&admin_url).await;
        let url = pods_url(&role, hosts, &database);
        let mut dir = tempfile::Builder::new().prefix("podlock-chaos-").tempdir().expect("a directory");
        dir.disable_cleanup(true);
        Self {
            server,
            database,
            role,
            lease: LEASE,
            url,
            admin,
            admin_url,
            pods: BTreeMap::new(),
            network: None,
            links: BTreeMap::new(),
            workers: None,
            logs: Vec::new(),
            dir,
            keeps_logs: true,
            figures: Vec::new(),
        }
    }

    /// A role with the rights of a pod beside that of the others, and what its pods connect to: what is forbidden to it
    /// hits none of the others.
    pub(crate) async fn role_beside(&self, name: &str) -> (String, String) {
        let role = format!("{}_{name}", self.role);
        let made = format!("CREATE ROLE {role} LOGIN NOSUPERUSER PASSWORD '{PASSWORD}'");
        self.admin.batch_execute(&made).await.expect("a role");
        self.admin.batch_execute(&migrate::grants("public", &role, Access::Pod)).await.expect("its rights");
        let url = self.url.replace(&format!("//{}:", self.role), &format!("//{role}:"));
        assert_ne!(url, self.url, "the URL names the role");
        (role, url)
    }

    /// The settings that every pod has.
    pub(crate) fn settings(&self) -> Settings {
        Config::new(&self.url).lease(self.lease).validate().expect("valid settings")
    }

    pub(crate) fn worst_case(&self) -> WorstCase {
        self.settings().worst_case()
    }

    /// The command that starts a pod here.
    pub(crate) fn command(&mut self, name: &str) -> Command {
        let prefix = match &mut self.network {
            Some(network) => self.links.entry(name.to_owned()).or_insert_with(|| network.link()).prefix(),
            None => Vec::new(),
        };
        let mut command = process::command(&prefix, name, &self.url, self.lease);
        command.envs(self.workers.map(workers::environment).unwrap_or_default());
        command
    }

    /// Starts a pod and waits until it is registered.
    pub(crate) async fn pod(&mut self, name: &str) {
        let command = self.command(name);
        self.pod_by(name, command).await;
    }

    pub(crate) async fn pod_by(&mut self, name: &str, command: Command) {
        self.spawn(name, command);
        self.pods[name].ready(START).await;
    }

    /// Starts a pod's process.
    pub(crate) fn spawn(&mut self, name: &str, command: Command) {
        let process = Process::spawn(name, command, self.dir.path());
        if let Some(former) = self.pods.insert(name.to_owned(), process) {
            self.logs.push(former.log());
        }
    }

    /// Starts `command` as the process named `process`. podlock must refuse to start that pod. Returns what the process
    /// said when it ended.
    pub(crate) async fn refused(&mut self, process: &str, command: Command) -> Said {
        self.spawn(process, command);
        let answered = |s: &Said| matches!(s.ev.as_str(), "ready" | "refused").then(|| s.clone());
        let said = self.pods[process].heard("whether it may start", START, answered).await;
        assert_eq!(said.ev, "refused", "{said:?}");
        assert!(said.text.as_ref().is_some_and(|text| !text.contains(PASSWORD)), "{said:?}");
        assert_eq!(self.process(process).ended(START).await, 1, "its exit code");
        said
    }

    /// Starts pods, and waits until all of them may bury.
    pub(crate) async fn settled(&mut self, names: &[&str]) {
        for name in names {
            let command = self.command(name);
            self.spawn(name, command);
        }
        for name in names {
            self.pods[*name].ready(START).await;
        }
        self.settle().await;
    }

    /// Waits until pods that have just started may bury, and are watched.
    pub(crate) async fn settle(&self) {
        tokio::time::sleep(self.lease + Duration::from_millis(400)).await;
    }

    pub(crate) fn process(&mut self, name: &str) -> &mut Process {
        self.pods.get_mut(name).unwrap_or_else(|| panic!("there is no pod {name}"))
    }

    /// Starts runs on a pod, and waits until each has made its first steps.
    pub(crate) async fn start(&mut self, pod: &str, count: u32, steps: u64, pause_ms: u64) {
        let input = Input { steps, pause_ms };
        self.process(pod).order(&Order::Start { count, input }).await;
        let sql = "SELECT count(*) FROM studio_runs WHERE owner_pod = $1 AND checkpoint IS NOT NULL";
        self.until(START, "the runs have begun", async |client| {
            let begun: i64 = client.query_one(sql, &[&pod]).await.map_err(|e| e.to_string())?.get(0);
            if begun >= i64::from(count) { Ok(()) } else { Err(format!("{begun} of {count}")) }
        })
        .await;
    }

    /// Kills a pod; returns when, in nanoseconds of the common clock.
    pub(crate) async fn kill(&mut self, pod: &str) -> u64 {
        let at = now_ns();
        self.process(pod).kill().await;
        at
    }

    /// When a survivor first heard that this pod was buried.
    pub(crate) async fn buried(&self, pod: &str, since: u64, limit: Duration) -> u64 {
        self.first(&format!("pod {pod} is buried"), limit, |said| {
            said.t >= since && said.what.as_deref() == Some("buried") && said.pod.as_deref() == Some(pod)
        })
        .await
    }

    /// When a survivor first heard that this pod registered.
    pub(crate) async fn joined(&self, pod: &str, since: u64, limit: Duration) -> u64 {
        self.first(&format!("pod {pod} is registered anew"), limit, |said| {
            said.t >= since && said.what.as_deref() == Some("joined") && said.pod.as_deref() == Some(pod)
        })
        .await
    }

    /// When the first run was taken up on another pod.
    pub(crate) async fn resumed(&self, since: u64, limit: Duration) -> u64 {
        self.first("a run goes on elsewhere", limit, |said| {
            said.t >= since && said.ev == "begin" && said.attempt.is_some_and(|a| a > 1)
        })
        .await
    }

    /// When any pod first said something that `is` takes.
    pub(crate) async fn first(&self, what: &str, limit: Duration, is: impl Fn(&Said) -> bool) -> u64 {
        let began = Instant::now();
        loop {
            let found = self.pods.values().filter_map(|p| p.find(|s| is(s).then_some(s.t))).min();
            if let Some(at) = found {
                return at;
            }
            assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// When each of these pods has said something that `is` takes.
    pub(crate) async fn each(&self, pods: &[&str], what: &str, limit: Duration, is: impl Fn(&Said) -> bool) -> u64 {
        let mut last = 0;
        for pod in pods {
            last = last.max(self.pods[*pod].heard(what, limit, |s| is(s).then_some(s.t)).await);
        }
        last
    }

    /// Waits until a pod has logged this.
    pub(crate) async fn logged(&self, pod: &str, text: &str, limit: Duration) {
        let log = &self.pods[pod].stderr;
        eventually(limit, &format!("pod {pod} logs {text:?}"), async || {
            let logged = std::fs::read_to_string(log).map_err(|e| e.to_string())?;
            if logged.contains(text) { Ok(()) } else { Err(format!("not in {}", log.display())) }
        })
        .await;
    }

    /// Starts a pod that must end at once, saying why.
    pub(crate) async fn refuses_to_start(&mut self, pod: &str, kind: &str, text: &str) {
        let command = self.command(pod);
        self.spawn(pod, command);
        let refusal = self.pods[pod].heard("why it does not start", START, |s| (s.ev == "refused").then(|| s.clone()));
        let Said { kind: said, text: words, .. } = refusal.await;
        assert_eq!(said.as_deref(), Some(kind), "{words:?}");
        assert!(words.as_deref().is_some_and(|words| words.contains(text)), "{words:?} has no {text:?}");
        assert_eq!(self.process(pod).ended(START).await, 1, "the exit code of pod {pod}");
    }

    /// Waits until these pods hold both their locks; returns when.
    pub(crate) async fn whole(&self, pods: &[&str], limit: Duration) -> u64 {
        let sql = "SELECT n, s.alive, s.witness FROM unnest($1::text[]) AS n LEFT \
                   JOIN studio_pod_status s ON s.pod_id = n WHERE (s.alive AND s.witness) IS NOT TRUE";
        self.until(limit, "the pods hold both their locks", async |client| {
            let rows = client.query(sql, &[&pods]).await.map_err(|e| e.to_string())?;
            let seen: Vec<(String, Option<bool>, Option<bool>)> =
                rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
            if seen.is_empty() { Ok(now_ns()) } else { Err(format!("of these not: {seen:?}")) }
        })
        .await
    }

    /// Notes how long something took, and holds it to its bound.
    pub(crate) fn figure(&mut self, what: &'static str, since: u64, at: u64, bound: Option<Duration>) {
        let took = Duration::from_nanos(at.saturating_sub(since));
        if let Some(bound) = bound {
            assert!(took <= bound + slack(), "{what} took {took:?}, and its bound is {bound:?}");
        }
        self.figures.push(Figure { what, took, bound });
    }

    /// Waits until `look` gives a value; fails with what it said last.
    pub(crate) async fn until<T>(
        &self,
        limit: Duration,
        what: &str,
        look: impl AsyncFn(&Client) -> Result<T, String>,
    ) -> T {
        let began = Instant::now();
        loop {
            match look(&self.admin).await {
                Ok(value) => return value,
                Err(seen) => assert!(began.elapsed() < limit, "not within {limit:?}: {what}; seen last: {seen}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A new connection for us, as soon as the server gives one.
    pub(crate) async fn reconnect(&mut self) {
        let began = Instant::now();
        loop {
            match try_connect(&self.admin_url).await {
                Ok(client) => {
                    self.admin = client;
                    return;
                }
                Err(e) => assert!(began.elapsed() < START, "no connection to the server again: {e}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The database lives elsewhere from now on: what is looked at and checked is what that server says.
    pub(crate) async fn moves_to(&mut self, admin_url: String) {
        self.admin_url = admin_url;
        self.reconnect().await;
    }

    /// What pods connect to that are given several hosts, in this order.
    pub(crate) fn url_of(&self, ports: [u16; 2]) -> String {
        let [first, second] = ports.map(|port| format!("127.0.0.1:{port}"));
        let hosts = format!("{first},{second}");
        format!("{}?target_session_attrs=read-write", pods_url(&self.role, &hosts, &self.database))
    }

    /// Waits until every run has ended.
    pub(crate) async fn all_runs_ended(&self, limit: Duration) {
        let sql = "SELECT state, count(*) FROM studio_runs GROUP BY 1 ORDER BY 1";
        self.until(limit, "all runs have ended", async |client| {
            let rows = client.query(sql, &[]).await.map_err(|e| e.to_string())?;
            let states: Vec<(String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            if states.iter().all(|(state, _)| state != "running") && !states.is_empty() {
                Ok(())
            } else {
                Err(format!("{states:?}"))
            }
        })
        .await;
    }

    /// The names of the roster.
    pub(crate) async fn roster(&self) -> Vec<String> {
        let rows = self.admin.query("SELECT pod_id FROM studio_pods ORDER BY 1", &[]).await.expect("the roster");
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Every incarnation that has ended: of which pod, why, and who buried it.
    pub(crate) async fn ends(&self) -> Vec<(String, String, Option<String>)> {
        let sql = "SELECT pod_id, reason, buried_by FROM studio_pod_sessions WHERE ended_at IS NOT NULL \
                   ORDER BY pod_id, ended_at";
        let rows = self.admin.query(sql, &[]).await.expect("the sessions");
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    }

    /// A pod as its row and the locks show it; `None` if it is not in the roster.
    pub(crate) async fn status(&self, pod: &str) -> Option<PodStatus> {
        let sql = "SELECT s.incarnation::text, s.session, p.liveness_pid, p.control_pid, s.alive AND s.witness, s.runs \
                   FROM studio_pod_status s JOIN studio_pods p USING (pod_id) WHERE s.pod_id = $1";
        let row = self.admin.query_opt(sql, &[&pod]).await.expect("the pod's status")?;
        Some(PodStatus {
            incarnation: row.get(0),
            session: row.get(1),
            liveness: row.get(2),
            control: row.get(3),
            whole: row.get(4),
            runs: row.get(5),
        })
    }

    /// Waits until a pod holds both of its locks and `is` accepts its status. Returns when it was seen, and the status.
    pub(crate) async fn whole_as(
        &self,
        pod: &str,
        limit: Duration,
        is: impl Fn(&PodStatus) -> bool,
    ) -> (u64, PodStatus) {
        let began = Instant::now();
        loop {
            let status = self.status(pod).await;
            match status {
                Some(now) if now.whole && is(&now) => return (now_ns(), now),
                seen => assert!(began.elapsed() < limit, "pod {pod} is not whole within {limit:?}: {seen:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The backends of one of a pod's sessions.
    pub(crate) async fn backends(&self, pod: &str, role: &str) -> Vec<i32> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() \
                   AND application_name = 'podlock/' || $1 || '/' || $2 ORDER BY 1";
        self.admin.query(sql, &[&pod, &role]).await.expect("backends").iter().map(|row| row.get(0)).collect()
    }

    /// Waits until the advisory locks of this database are those of these pods alone, two each.
    pub(crate) async fn locks_are_of(&self, pods: &[&str]) {
        let sql = "SELECT coalesce(a.application_name, '?') FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid) \
                   WHERE l.locktype = 'advisory' AND l.granted AND l.mode = 'ExclusiveLock' \
                   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        let mut due: Vec<String> = Vec::new();
        for pod in pods {
            due.extend([format!("podlock/{pod}/control"), format!("podlock/{pod}/liveness")]);
        }
        due.sort();
        self.until(START, &format!("nobody but {pods:?} holds a lock"), async |client| {
            let rows = client.query(sql, &[]).await.map_err(|e| e.to_string())?;
            let mut held: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            held.sort();
            if held == due { Ok(()) } else { Err(format!("{held:?}")) }
        })
        .await;
    }

    /// Ends the backends of some of a pod's sessions; returns how many.
    pub(crate) async fn terminate(&self, pod: &str, roles: &[&str]) -> usize {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
                   AND application_name = ANY(SELECT 'podlock/' || $1 || '/' || role FROM unnest($2::text[]) AS role)";
        self.admin.query(sql, &[&pod, &roles]).await.expect("terminated").len()
    }

    /// The pod's own ports of the two connections that hold its locks, as far as they are there.
    pub(crate) async fn ports_of_its_locks(&self, pod: &str) -> Vec<u16> {
        let sql = "SELECT client_port FROM pg_stat_activity WHERE datname = current_database() \
                   AND application_name IN ('podlock/' || $1 || '/liveness', 'podlock/' || $1 || '/control')";
        let rows = self.admin.query(sql, &[&pod]).await.expect("the pod's connections");
        rows.iter().map(|row| u16::try_from(row.get::<_, i32>(0)).expect("a port")).collect()
    }

    /// How often runs were claimed by another than their first owner.
    pub(crate) async fn takeovers(&self) -> i64 {
        let sql = "SELECT count(*) FROM studio_run_attempts WHERE attempt > 1";
        self.admin.query_one(sql, &[]).await.expect("the attempts").get(0)
    }

    /// Which incarnations have ended, and why: each pod's name with the reason.
    pub(crate) async fn reasons(&self) -> Vec<(String, String)> {
        self.ends().await.into_iter().map(|(pod, reason, _)| (pod, reason)).collect()
    }

    /// What all processes said, those that are gone included.
    pub(crate) fn logs(&self) -> Vec<PodLog> {
        self.logs.iter().cloned().chain(self.pods.values().map(Process::log)).collect()
    }

    /// What was confirmed to a pod and is not there.
    pub(crate) async fn missing(&self) -> Vec<Missing> {
        checker::missing(&history::load(&self.admin).await, &self.logs())
    }

    /// Ends the scenario: waits until every run has ended, and checks the whole history and the log of the pods' lives.
    pub(crate) async fn conclude(mut self, excused: &Excused) -> Vec<Figure> {
        self.all_runs_ended(START).await;
        self.replicas_agree().await;
        let history = history::load(&self.admin).await;
        let logs = self.logs();
        let found = check(&history, &logs, excused, self.replicas_bound() + slack());
        if !found.is_empty() {
            let told = self.dir.path().join("history.txt");
            std::fs::write(&told, format!("{history:#?}\n{logs:#?}")).expect("the history is written down");
            panic!("the history, {}, breaks the laws: {found:#?}", told.display());
        }
        assert!(!history.is_empty(), "nothing was recorded");
        self.fold_is_roster().await;
        self.nobody_panicked();
        self.dir.disable_cleanup(false);
        self.keeps_logs = false;
        std::mem::take(&mut self.figures)
    }

    /// Not even in a task whose end nobody awaits.
    fn nobody_panicked(&self) {
        for entry in std::fs::read_dir(self.dir.path()).expect("the logs") {
            let path = entry.expect("a log").path();
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(!log.contains("panicked at"), "a task of a pod panicked: {}", path.display());
        }
    }

    /// Folding the log of the pods' lives gives the roster.
    async fn fold_is_roster(&self) {
        // One snapshot of both: the log is written in the transactions that write the roster.
        let sql = "SELECT (SELECT coalesce(jsonb_agg(to_jsonb(e) ORDER BY e.idx), '[]') FROM studio_pod_events e), \
                   (SELECT coalesce(jsonb_object_agg(p.pod_id, p.incarnation), '{}') FROM studio_pods p)";
        let row = self.admin.query_one(sql, &[]).await.expect("log and roster");
        let (log, roster): (Vec<serde_json::Value>, BTreeMap<String, Incarnation>) =
            (serde_json::from_value(row.get(0)).expect("a log"), serde_json::from_value(row.get(1)).expect("a roster"));
        let of = |e: &serde_json::Value, field: &str| e[field].as_str().expect("text").to_owned();
        let entries: Vec<LogEntry> = log
            .iter()
            .map(|e| LogEntry {
                idx: e["idx"].as_i64().expect("a number"),
                kind: of(e, "kind"),
                pod_id: PodId::new(of(e, "pod_id")).expect("a name"),
                incarnation: serde_json::from_value(e["incarnation"].clone()).expect("an incarnation"),
                detail: e["detail"].clone(),
            })
            .collect();
        let folded = fold::fold(&entries).unwrap_or_else(|e| panic!("{e}; log: {log:#?}"));
        let folded: BTreeMap<String, Incarnation> =
            folded.into_iter().map(|(pod, member)| (pod.to_string(), member.incarnation)).collect();
        assert_eq!(folded, roster, "the folded log is not the roster; log: {log:#?}");
    }
}

fn pods_url(role: &str, hosts: &str, database: &str) -> String {
    format!("postgresql://{role}:{PASSWORD}@{hosts}/{database}")
}

impl Drop for World {
    fn drop(&mut self) {
        if self.keeps_logs {
            eprintln!("what the pods logged is in {}", self.dir.path().display());
        }
    }
}

fn role_of(database: &str) -> String {
    format!("pods_of_{database}")
}

pub(crate) async fn connect(url: &str) -> Client {
    try_connect(url).await.unwrap_or_else(|e| panic!("no connection: {e}"))
}

pub(crate) async fn try_connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Waits for something that is not in the database.
pub(crate) async fn eventually<T, F: Future<Output = Result<T, String>>>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let began = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) => assert!(began.elapsed() < limit, "not within {limit:?}: {what}; seen last: {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
