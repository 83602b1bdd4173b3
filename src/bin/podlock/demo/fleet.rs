//! The pods: real processes of this program, and their output.
//!
//! No pod outlives the demo. Each is killed and reaped at the end. Each also ends by itself when its stdin closes, and
//! that happens however the demo dies.

use std::collections::VecDeque;
use std::process::Stdio;
use std::time::{Duration, Instant};

use podlock::RunId;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::failure::Failure;

/// How many of a pod's last lines explain its failure: an error with its causes and help takes fewer. More would push
/// the demo's own words off the screen.
const TAIL: usize = 12;
/// The text that a pod prints once it is registered: `podlock pod NAME listening on URL`.
const READY: &str = " listening on ";

/// One pod.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) pid: Pid,
    pub(super) url: Option<String>,
    child: Child,
    /// The pod ends when this end of its stdin closes.
    _stdin: Option<ChildStdin>,
    tail: VecDeque<String>,
}

/// All pods, and their output.
pub(super) struct Fleet {
    pub(super) members: Vec<Member>,
    news: mpsc::UnboundedReceiver<News>,
    sender: mpsc::UnboundedSender<News>,
    readers: JoinSet<()>,
}

/// A piece of a pod's output, stamped when it was read.
#[derive(Debug)]
pub(super) struct News {
    pub(super) pod: usize,
    pub(super) at: Instant,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// The pod is registered and serves at this address.
    Ready(String),
    Log(LogLine),
    /// A line that is not JSON.
    Text(String),
    /// The pod has closed its log, so it has ended.
    End,
}

/// The part of a log line that the demo needs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LogLine {
    pub(super) level: String,
    pub(super) target: String,
    pub(super) event: String,
    pub(super) message: String,
    pub(super) run_id: Option<RunId>,
    pub(super) attempt: i32,
    pub(super) fence: i64,
    pub(super) from: u32,
    pub(super) n: u32,
    pub(super) reason: String,
}

/// The settings that every pod is started with.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub(super) database_url: String,
    pub(super) schema: String,
    pub(super) lease: Duration,
    pub(super) capacity: usize,
}

impl Fleet {
    pub(super) fn new() -> Self {
        let (sender, news) = mpsc::unbounded_channel();
        Self { members: Vec::new(), news, sender, readers: JoinSet::new() }
    }

    /// Starts a pod and returns at once. The pod reports [`What::Ready`] when it is ready.
    ///
    /// Must run on the main thread: the kernel ends the pods with the thread that started them.
    pub(super) fn start(&mut self, name: &str, recipe: &Recipe) -> Result<(), Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["pod", "--name", name, "--listen", "127.0.0.1:0", "--log-format", "json", "--exit-with-stdin"]);
        command.args(["--lease", &humantime::format_duration(recipe.lease).to_string()]);
        command.args(["--capacity", &recipe.capacity.to_string()]);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PODLOCK_") {
                command.env_remove(variable);
            }
        }
        command.env_remove("POD_NAME").env("PODLOCK_SCHEMA", &recipe.schema).env("PODLOCK_LOG", "info");
        // The URL goes into the environment, so that other users of the machine cannot see the password.
        command.env("DATABASE_URL", &recipe.database_url);
        // The pod gets its own process group, so that Ctrl-C reaches the demo alone.
        command.process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failure::Failed(format!("{name} ended as soon as it was started")))?;
        let pod = self.members.len();
        if let Some(stdout) = child.stdout.take() {
            self.readers.spawn(read_stdout(pod, stdout, self.sender.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            self.readers.spawn(read_log(pod, stderr, self.sender.clone()));
        }
        let stdin = child.stdin.take();
        let name = name.to_owned();
        self.members.push(Member { name, pid, url: None, child, _stdin: stdin, tail: VecDeque::new() });
        Ok(())
    }

    /// The next piece of a pod's output. Cancel safe.
    pub(super) async fn news(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => {
                self.keep(&news);
                news
            }
            // Never reached: this struct keeps a sender.
            None => std::future::pending().await,
        }
    }

    fn keep(&mut self, news: &News) {
        let Some(member) = self.members.get_mut(news.pod) else { return };
        let line = match &news.what {
            What::Ready(url) => return member.url = Some(url.clone()),
            What::Log(line) if line.event == "chunk" => return,
            What::Log(line) => format!("{} {}: {}", line.level, line.target, line.message),
            What::Text(text) => text.clone(),
            What::End => return,
        };
        member.tail.push_back(line);
        if member.tail.len() > TAIL {
            member.tail.pop_front();
        }
    }

    /// Sends a signal. Returns the moment just before.
    pub(super) fn signal(&self, pod: usize, signal: Signal) -> Result<Instant, Failure> {
        let Some(member) = self.members.get(pod) else {
            return Err(Failure::Failed("there is no such pod".to_owned()));
        };
        let before = Instant::now();
        kill_process(member.pid, signal).map_err(|e| {
            Failure::Failed(format!("process {} cannot be signalled: {e}", member.pid.as_raw_nonzero()))
        })?;
        Ok(before)
    }

    /// Waits until a pod has ended, and returns how: `exit status: 0`.
    pub(super) async fn ended(&mut self, pod: usize) -> Result<std::process::ExitStatus, Failure> {
        match self.members.get_mut(pod) {
            Some(member) => Ok(member.child.wait().await?),
            None => Err(Failure::Failed("there is no such pod".to_owned())),
        }
    }

    /// The last lines of a pod's log, to explain why it ended.
    pub(super) fn last_words(&self, pod: usize) -> String {
        self.members.get(pod).map_or_else(String::new, |m| m.tail.iter().map(|line| format!("\n  {line}")).collect())
    }

    /// Kills and reaps the remaining pods.
    pub(super) async fn end(mut self) {
        for member in &mut self.members {
            // The pod may have ended already, which is fine.
            let _ = member.child.start_kill();
        }
        for member in &mut self.members {
            let _ = member.child.wait().await;
        }
        self.readers.shutdown().await;
    }
}

async fn read_stdout(pod: usize, stdout: impl AsyncRead + Unpin, news: mpsc::UnboundedSender<News>) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let what = match line.rsplit_once(READY) {
            Some((_, url)) => What::Ready(url.to_owned()),
            None => What::Text(line),
        };
        let _ = news.send(News { pod, at: Instant::now(), what });
    }
}

async fn read_log(pod: usize, stderr: impl AsyncRead + Unpin, news: mpsc::UnboundedSender<News>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let at = Instant::now();
        let what = serde_json::from_str(&line).map_or_else(|_| What::Text(line), What::Log);
        let _ = news.send(News { pod, at, what });
    }
    let _ = news.send(News { pod, at: Instant::now(), what: What::End });
}
