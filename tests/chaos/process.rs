//! The process of a pod, seen from outside: signals, orders, and what it says.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::history::{PodLog, Said};
use crate::inherited;
use crate::patience::SOON;
use crate::pod::Order;

/// How this program is told to be a pod.
pub(crate) const AS_POD: &str = "CHAOS_IS_POD";

/// A pod's process. Killed when dropped, even if it is stopped.
pub(crate) struct Process {
    pub(crate) name: String,
    child: Child,
    pid: Pid,
    orders: ChildStdin,
    said: Arc<Mutex<Vec<Said>>>,
    /// The file that has the process's stderr, with podlock's log.
    pub(crate) stderr: PathBuf,
}

/// The command that starts a pod. `prefix` comes before it: a program that changes the process's surroundings and then
/// becomes the pod.
pub(crate) fn command(prefix: &[String], name: &str, url: &str, lease: Duration) -> Command {
    let this = std::env::current_exe().expect("this program");
    let mut words = prefix.iter().map(String::as_str).chain([this.to_str().expect("a path in UTF-8")]);
    let mut command = Command::new(words.next().expect("there is a program"));
    command.args(words);
    inherited::clean(command.as_std_mut());
    command
        .env(AS_POD, "1")
        .env("POD_NAME", name)
        .env("DATABASE_URL", url)
        .env("PODLOCK_LEASE", format!("{}ms", lease.as_millis()));
    command
}

impl Process {
    /// Must be called on a thread that lives as long as the process is to live: the kernel kills it with that thread.
    pub(crate) fn spawn(name: &str, mut command: Command, logs: &Path) -> Self {
        let stderr = logs.join(format!("{name}-{:x}.log", crate::pod::now_ns()));
        let log = File::create(&stderr).expect("a log file");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let pid = Pid::from_raw(i32::try_from(child.id().expect("it runs")).unwrap()).unwrap();
        let orders = child.stdin.take().expect("its stdin");
        let mut lines = BufReader::new(child.stdout.take().expect("its stdout")).lines();
        let said = Arc::<Mutex<Vec<Said>>>::default();
        let heard = Arc::clone(&said);
        let whose = name.to_owned();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let said = serde_json::from_str(&line).unwrap_or_else(|e| panic!("pod {whose} said {line:?}: {e}"));
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(said);
            }
        });
        Self { name: name.to_owned(), child, pid, orders, said, stderr }
    }

    /// Everything that it has said so far.
    pub(crate) fn said(&self) -> Vec<Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first that it has said that `pick` takes.
    pub(crate) fn find<T>(&self, pick: impl FnMut(&Said) -> Option<T>) -> Option<T> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).iter().find_map(pick)
    }

    pub(crate) fn log(&self) -> PodLog {
        PodLog { pod: self.name.clone(), said: self.said() }
    }

    /// Waits until it has said something that `pick` takes.
    pub(crate) async fn heard<T>(&self, what: &str, limit: Duration, pick: impl Fn(&Said) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = self.find(&pick) {
                return found;
            }
            let last = || self.said().iter().rev().take(5).rev().map(|s| format!("{s:?}")).collect::<Vec<_>>();
            assert!(
                began.elapsed() < limit,
                "pod {} did not say within {limit:?}: {what}; it said last {:#?}; its log: {}",
                self.name,
                last(),
                self.stderr.display()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The incarnation that it began with.
    pub(crate) async fn ready(&self, limit: Duration) -> String {
        self.heard("it is ready", limit, |s| (s.ev == "ready").then(|| s.incarnation.clone()).flatten()).await
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap_or_else(|e| panic!("{signal:?} to pod {}: {e}", self.name));
    }

    /// Kills it, and returns once it is gone.
    pub(crate) async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().await.expect("it is reaped");
    }

    /// Stops it, and returns once each of its threads has stopped: they do so one after another.
    pub(crate) async fn freeze(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.pid());
        let stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = task.and_then(|t| std::fs::read_to_string(t.path().join("stat"))).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        };
        let began = Instant::now();
        while !std::fs::read_dir(&tasks).expect("its threads").all(stopped) {
            assert!(began.elapsed() < SOON, "pod {} does not stop", self.name);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    pub(crate) async fn order(&mut self, order: &Order) {
        let line = format!("{}\n", serde_json::to_string(order).unwrap());
        self.orders.write_all(line.as_bytes()).await.unwrap_or_else(|e| panic!("an order to pod {}: {e}", self.name));
    }

    /// Waits until it has ended by itself, and returns its exit code; -1 for a signal.
    pub(crate) async fn ended(&mut self, limit: Duration) -> i32 {
        let status = tokio::time::timeout(limit, self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("pod {} has not ended within {limit:?}", self.name));
        status.expect("it is reaped").code().unwrap_or(-1)
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}
