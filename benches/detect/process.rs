//! The processes: this program, started again in another part. What they have to say they write as lines of JSON.

use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

use podlock::{Incarnation, RunId};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use crate::Result;
use crate::clock::{self, Reading};

/// How long anything may take that is waited for: far more than it ever takes.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// What a process says.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Says {
    /// A pod is registered and has started its runs; a holder has its lock.
    Ready { incarnation: Option<Incarnation> },
    /// A handler's first line, with the reading that it took there.
    Begun { run: RunId, attempt: i32, at: Reading },
}

/// What was said, and by which process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct News {
    pub(crate) from: Pid,
    pub(crate) says: Says,
}

/// The ear for what all processes say.
pub(crate) struct Ear {
    sender: mpsc::UnboundedSender<News>,
    news: mpsc::UnboundedReceiver<News>,
}

impl Ear {
    pub(crate) fn new() -> Self {
        let (sender, news) = mpsc::unbounded_channel();
        Self { sender, news }
    }

    pub(crate) async fn next(&mut self, waiting_for: &str) -> Result<News> {
        match tokio::time::timeout(SOON, self.news.recv()).await {
            Ok(Some(news)) => Ok(news),
            _ => Err(format!("waited {SOON:?} for {waiting_for}").into()),
        }
    }

    /// What was said and not heard yet is of no interest.
    pub(crate) fn clear(&mut self) {
        while self.news.try_recv().is_ok() {}
    }
}

/// A process. Killed with its value; and it ends by itself when this program does, because its stdin closes.
pub(crate) struct Process {
    pub(crate) pid: Pid,
    child: Child,
    stdin: ChildStdin,
}

impl Process {
    pub(crate) fn start(args: &[&str], url: &str, ear: &Ear) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PODLOCK_") {
                command.env_remove(variable);
            }
        }
        command.env_remove("POD_NAME").env("DATABASE_URL", url);
        let mut child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pid = pid.ok_or("a process ended as soon as it was started")?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (stdin, stdout) = stdin.zip(stdout).ok_or("a process has no pipes")?;
        let said = ear.sender.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str(&line) {
                    // Nobody listens only when everything ends.
                    Ok(says) => _ = said.send(News { from: pid, says }),
                    Err(_) => eprintln!("bench-detect: process {} says {line}", pid.as_raw_nonzero()),
                }
            }
        });
        Ok(Self { pid, child, stdin })
    }

    /// Kills it by SIGKILL; the reading was taken just before.
    pub(crate) fn kill(&self) -> Result<Reading> {
        let before = clock::now();
        kill_process(self.pid, Signal::KILL)?;
        Ok(before)
    }

    pub(crate) async fn reap(mut self) -> Result<()> {
        self.child.wait().await?;
        Ok(())
    }

    pub(crate) async fn tell(&mut self, line: &str) -> Result<()> {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(())
    }
}

/// In a process that was started: says something.
pub(crate) fn say(says: &Says) -> Result<()> {
    let mut line = serde_json::to_string(says)?;
    line.push('\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// In a process that was started: calls `hear` with each line that it is told, and ends it with whoever started it.
pub(crate) fn listen(hear: impl Fn(&str) + Send + 'static) -> Result<std::thread::JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let (mut stdin, mut line, mut byte) = (std::io::stdin().lock(), String::new(), [0]);
        while let Ok(1) = stdin.read(&mut byte) {
            match byte[0] {
                b'\n' => hear(&std::mem::take(&mut line)),
                other => line.push(char::from(other)),
            }
        }
        std::process::exit(1);
    })?;
    Ok(thread)
}
