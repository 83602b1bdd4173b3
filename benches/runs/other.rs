//! Pods in processes of their own: this program, started again. What they have to say they write as lines of JSON, and
//! what they are told they read as lines.

use std::io::{BufRead as _, Write as _};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use podlock::{NewRun, Outcome, Pod, Run};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::stage::{KIND, config, work};
use crate::{Result, SOON};

/// How many runs a holder starts at once.
const STARTS_AT_ONCE: usize = 256;

/// The part that this program plays when it starts itself. It finds its database in `DATABASE_URL`.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(hide = true)]
pub(crate) enum Part {
    /// A pod that executes the runs that others submit.
    Worker,
    /// A pod whose runs wait until they are told to stop.
    Holder {
        #[arg(long)]
        name: String,
        /// It says so when so many have begun.
        #[arg(long)]
        expects: usize,
    },
}

/// What such a process says.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Says {
    Ready,
    /// A run of this caller has ended.
    Ended {
        caller: usize,
    },
    /// So many runs as expected have begun; when, in nanoseconds since 1970.
    Begun {
        at: u128,
    },
    /// The runs were started; the resident memory is in bytes.
    Started {
        ms: f64,
        before: f64,
        after: f64,
    },
    /// The pod has shut down.
    Drained {
        ms: f64,
        yielded: usize,
        aborted: usize,
    },
}

/// Nanoseconds since 1970, to compare with those of another process.
pub(crate) fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
}

/// Such a process. It ends by itself when this program does, because its stdin closes.
pub(crate) struct Other {
    child: Child,
    stdin: ChildStdin,
    heard: mpsc::UnboundedReceiver<Says>,
}

impl Other {
    /// Starts it, and waits until its pod is ready. `hear` may keep what it says.
    pub(crate) async fn start(
        args: &[&str],
        url: &str,
        mut hear: impl FnMut(Says) -> Option<Says> + Send + 'static,
    ) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("PODLOCK_") {
                command.env_remove(variable);
            }
        }
        let mut child = command.env_remove("POD_NAME").env("DATABASE_URL", url).spawn()?;
        let (stdin, stdout) = child.stdin.take().zip(child.stdout.take()).ok_or("a process has no pipes")?;
        let (said, heard) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str(&line) {
                    // Nobody listens only when everything ends.
                    Ok(says) => drop(hear(says).map(|says| said.send(says))),
                    Err(_) => eprintln!("bench-runs: another process says {line}"),
                }
            }
        });
        let mut other = Self { child, stdin, heard };
        match other.next("a pod").await? {
            Says::Ready => Ok(other),
            says => Err(format!("a pod that starts says {says:?}").into()),
        }
    }

    pub(crate) async fn next(&mut self, waiting_for: &str) -> Result<Says> {
        match tokio::time::timeout(SOON, self.heard.recv()).await {
            Ok(Some(says)) => Ok(says),
            _ => Err(format!("waited {SOON:?} for {waiting_for} of another process").into()),
        }
    }

    pub(crate) async fn tell(&mut self, line: &str) -> Result<()> {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(())
    }

    /// The processor time that it has used, in milliseconds. The kernel counts it in steps of 10 ms.
    pub(crate) fn processor_ms(&self) -> Result<f64> {
        let pid = self.child.id().ok_or("another process has ended")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(") ").ok_or("an unknown form of stat")?;
        let ticks = |n| fields.split(' ').nth(n).and_then(|field| field.parse::<f64>().ok());
        Ok(ticks(11).zip(ticks(12)).map(|(user, system)| (user + system) * 10.0).ok_or("an unknown form of stat")?)
    }

    /// Shuts its pod down, and returns what became of its runs.
    pub(crate) async fn drain(&mut self) -> Result<Says> {
        self.tell("drain").await?;
        loop {
            if let drained @ Says::Drained { .. } = self.next("the drain").await? {
                return Ok(drained);
            }
        }
    }

    pub(crate) async fn end(mut self) -> Result<()> {
        self.drain().await?;
        self.child.wait().await?;
        Ok(())
    }
}

/// What the process itself does.
pub(crate) fn play(part: &Part) -> Result<()> {
    let (say, mut told) = (mouth()?, ear()?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async move {
        let pod = match part {
            Part::Worker => worker(&say).await?,
            Part::Holder { name, expects } => holder(name, *expects, &say).await?,
        };
        say.send(Says::Ready)?;
        while let Some(line) = told.recv().await {
            match line.split_once(' ') {
                Some(("start", runs)) => say.send(start(&pod, runs.parse()?).await?)?,
                _ if line == "drain" => {
                    let began = Instant::now();
                    let report = pod.shutdown(SOON).await?;
                    let ms = began.elapsed().as_secs_f64() * 1e3;
                    say.send(Says::Drained { ms, yielded: report.yielded, aborted: report.aborted })?;
                    // The mouth is a thread, which the end of this process would cut off.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    return Ok(());
                }
                _ => return Err(format!("told {line:?}").into()),
            }
        }
        Ok(())
    })
}

type Mouth = std::sync::mpsc::Sender<Says>;

async fn worker(say: &Mouth) -> Result<Pod> {
    let say = say.clone();
    let handler = move |run: Run| {
        let say = say.clone();
        async move {
            let (caller, ended) = work(&run).await?;
            say.send(Says::Ended { caller })?;
            Ok(ended)
        }
    };
    Ok(Pod::builder(config(&std::env::var("DATABASE_URL")?, "worker")).handler(KIND, handler).start().await?)
}

async fn holder(name: &str, expects: usize, say: &Mouth) -> Result<Pod> {
    let (say, begun) = (say.clone(), Arc::new(AtomicUsize::new(0)));
    let handler = move |run: Run| {
        if begun.fetch_add(1, Ordering::Relaxed) + 1 == expects {
            // Nobody listens only when everything ends.
            let _ = say.send(Says::Begun { at: now() });
        }
        async move {
            run.stopped().await;
            Ok(Outcome::Yield)
        }
    };
    Ok(Pod::builder(config(&std::env::var("DATABASE_URL")?, name)).handler(KIND, handler).start().await?)
}

async fn start(pod: &Pod, runs: usize) -> Result<Says> {
    let (before, began) = (resident()?, Instant::now());
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..STARTS_AT_ONCE.min(runs) {
        let (pod, next) = (pod.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < runs {
                pod.start(NewRun::new(KIND).input(json!({ "n": 1 }))).await?;
            }
            Result::<()>::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(Says::Started { ms: began.elapsed().as_secs_f64() * 1e3, before, after: resident()? })
}

/// The resident memory of this process, in bytes.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? * 1024.0)
}

/// Writes what is said, as much at once as there is.
fn mouth() -> Result<Mouth> {
    let (say, said) = std::sync::mpsc::channel::<Says>();
    std::thread::Builder::new().name("stdout".to_owned()).spawn(move || -> Result<()> {
        while let Ok(first) = said.recv() {
            let mut lines = String::new();
            for says in std::iter::once(first).chain(said.try_iter()) {
                lines.push_str(&serde_json::to_string(&says)?);
                lines.push('\n');
            }
            std::io::stdout().write_all(lines.as_bytes())?;
        }
        Ok(())
    })?;
    Ok(say)
}

/// Reads what is told. At the end of stdin whoever started this process is gone, and it ends.
fn ear() -> Result<mpsc::UnboundedReceiver<String>> {
    let (tell, told) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
            let _ = tell.send(line);
        }
        std::process::exit(1);
    })?;
    Ok(told)
}
