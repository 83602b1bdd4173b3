//! The processes with the pods, as the measuring process sees them: it starts and kills them, tells them what to do,
//! and knows from their reports which pods live.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use crate::Result;
use crate::host::{Became, Order, Report};

/// All pods of the fleet, by the process that they live in.
pub(crate) struct Hosts {
    url: String,
    lease: Duration,
    hosts: Vec<Host>,
    sender: mpsc::UnboundedSender<Report>,
    reports: mpsc::UnboundedReceiver<Report>,
    /// The pods that hold their lock, with their incarnations.
    attached: BTreeMap<String, String>,
    /// The pods that were lost or refused since the last [`Hosts::clear`].
    detached: BTreeSet<String>,
    refused: Vec<(String, String, u64)>,
    ended: Vec<(String, Option<String>)>,
}

struct Host {
    child: Child,
    stdin: ChildStdin,
    pods: BTreeSet<String>,
}

impl Hosts {
    pub(crate) fn new(url: String, lease: Duration) -> Self {
        let (sender, reports) = mpsc::unbounded_channel();
        let (attached, detached, refused, ended) = Default::default();
        Self { url, lease, hosts: Vec::new(), sender, reports, attached, detached, refused, ended }
    }

    /// Starts a process. Returns its number.
    pub(crate) fn open(&mut self) -> Result<usize> {
        let mut command = Command::new(std::env::current_exe()?);
        let lease = humantime::format_duration(self.lease).to_string();
        command.args(["host", "--lease", &lease]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PODLOCK_") {
                command.env_remove(variable);
            }
        }
        command.env_remove("POD_NAME").env("DATABASE_URL", &self.url);
        let mut child = command.spawn()?;
        let (stdin, stdout) = child.stdin.take().zip(child.stdout.take()).ok_or("a process has no pipes")?;
        let said = self.sender.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str(&line) {
                    // Nobody listens only when everything ends.
                    Ok(report) => _ = said.send(report),
                    Err(_) => eprintln!("bench-fleet: a host says {line}"),
                }
            }
        });
        self.hosts.push(Host { child, stdin, pods: BTreeSet::new() });
        Ok(self.hosts.len() - 1)
    }

    pub(crate) async fn start(&mut self, host: usize, pods: impl IntoIterator<Item = String>) -> Result<()> {
        for pod in pods {
            self.hosts[host].tell(&Order::Start(pod.clone())).await?;
            self.hosts[host].pods.insert(pod);
        }
        Ok(())
    }

    pub(crate) async fn stop(&mut self, pods: &[String]) -> Result<()> {
        for host in &mut self.hosts {
            for pod in pods {
                if host.pods.remove(pod) {
                    host.tell(&Order::Stop(pod.clone())).await?;
                }
            }
        }
        Ok(())
    }

    /// Kills a process by SIGKILL. Returns the incarnations that lived in it, and the moment just before.
    pub(crate) async fn kill(&mut self, host: usize) -> Result<(Vec<String>, Instant)> {
        self.hear();
        let killed = &mut self.hosts[host];
        let pid = killed.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pods = std::mem::take(&mut killed.pods);
        let dead = pods.iter().filter_map(|pod| self.attached.remove(pod)).collect();
        let before = Instant::now();
        kill_process(pid.ok_or("the process has ended already")?, Signal::KILL)?;
        killed.child.wait().await?;
        Ok((dead, before))
    }

    /// All pods that should live.
    pub(crate) fn pods(&self) -> BTreeSet<String> {
        self.hosts.iter().flat_map(|host| host.pods.iter().cloned()).collect()
    }

    /// The pids of the processes.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.hosts.iter().filter_map(|host| host.child.id()).collect()
    }

    /// How many pods hold their lock, by their last reports.
    pub(crate) fn attached(&mut self) -> usize {
        self.hear();
        self.attached.len()
    }

    /// Pods that could not start, with the reason.
    pub(crate) fn refused(&self) -> &[(String, String, u64)] {
        &self.refused
    }

    /// Pods that have ended, with the reason if it was no clean stop.
    pub(crate) fn ended(&self) -> &[(String, Option<String>)] {
        &self.ended
    }

    /// How many pods lost their lock since the last [`Hosts::clear`].
    pub(crate) fn detached(&self) -> usize {
        self.detached.len()
    }

    pub(crate) fn clear(&mut self) {
        self.hear();
        self.detached.clear();
        self.refused.clear();
        self.ended.clear();
    }

    /// Waits until `done`, for at most `patience`. Returns whether it came to that, and how long it took.
    pub(crate) async fn until(&mut self, patience: Duration, done: impl Fn(&Self) -> bool) -> (bool, Duration) {
        let began = Instant::now();
        loop {
            self.hear();
            if done(self) {
                return (true, began.elapsed());
            }
            match tokio::time::timeout(patience.saturating_sub(began.elapsed()), self.reports.recv()).await {
                Ok(Some(report)) => self.take(report),
                _ => return (done(self), began.elapsed()),
            }
        }
    }

    /// Whether each pod that should live holds its lock.
    pub(crate) fn is_whole(&self) -> bool {
        self.hosts.iter().flat_map(|host| &host.pods).all(|pod| self.attached.contains_key(pod))
    }

    fn hear(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            self.take(report);
        }
    }

    fn take(&mut self, Report { pod, became }: Report) {
        match became {
            Became::Attached { incarnation } => _ = self.attached.insert(pod, incarnation),
            Became::Detached => {
                self.attached.remove(&pod);
                self.detached.insert(pod);
            }
            Became::Refused { why, after_ms } => {
                for host in &mut self.hosts {
                    host.pods.remove(&pod);
                }
                self.refused.push((pod, why, after_ms));
            }
            Became::Stopped { why } => {
                self.attached.remove(&pod);
                self.ended.push((pod, why));
            }
        }
    }
}

impl Host {
    async fn tell(&mut self, order: &Order) -> Result<()> {
        self.stdin.write_all(format!("{}\n", serde_json::to_string(order)?).as_bytes()).await?;
        Ok(())
    }
}
