//! A process of a system. It says what it has reached by words on its standard output, one a line; a line on its
//! standard input lets it begin; and it ends when its standard input does.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child as Process, ChildStdin, ChildStdout, Command};

use crate::roles::Part;
use crate::system::{Setting, System};
use crate::{Args, Result};

/// How long anything may take that is waited for: far more than it ever takes.
pub(crate) const SOON: Duration = Duration::from_secs(600);

/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(20);

pub(crate) struct Child {
    process: Process,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    what: String,
}

impl Child {
    /// Starts one, and waits until it is ready.
    pub(crate) async fn start(
        args: &Args,
        system: System,
        setting: Setting,
        part: Part,
        url: &str,
        jobs: u64,
    ) -> Result<Self> {
        let mut command = match (system.script(), &args.python) {
            (Some(script), Some(python)) => {
                let mut command = Command::new(python);
                command.env("PYTHONDONTWRITEBYTECODE", "1");
                command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(script));
                command
            }
            (Some(_), None) => return Err("a peer in Python was not skipped, and there is no Python".into()),
            (None, _) => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["role", &system.word()]);
                command
            }
        };
        command.args([part.word(), setting.word(), url, &jobs.to_string(), &setting.producers().to_string()]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("a process has no pipes".into());
        };
        let output = BufReader::new(output).lines();
        let what = format!("{system} {setting}, {}", part.word());
        let mut child = Self { process, input: Some(input), output, what };
        child.reaches("ready", SOON).await?;
        Ok(child)
    }

    /// Lets it begin, and says when that was.
    pub(crate) async fn go(&mut self) -> Result<Instant> {
        let input = self.input.as_mut().ok_or("the process was told to end")?;
        input.write_all(b"go\n").await?;
        input.flush().await?;
        Ok(Instant::now())
    }

    /// Waits until it says a word, and says when that was.
    pub(crate) async fn reaches(&mut self, word: &str, limit: Duration) -> Result<Instant> {
        let waiting = async {
            while let Some(line) = self.output.next_line().await? {
                if line == word {
                    return Ok(Instant::now());
                }
            }
            Err(format!("{}: it ended before it said `{word}`", self.what).into())
        };
        match tokio::time::timeout(limit, waiting).await {
            Ok(reached) => reached,
            Err(_) => Err(format!("{}: it did not say `{word}` within {limit:?}", self.what).into()),
        }
    }

    /// Ends its input, and waits for its end.
    pub(crate) async fn end(mut self) -> Result<()> {
        drop(self.input.take());
        match tokio::time::timeout(GRACE, self.process.wait()).await {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            Ok(status) => Err(format!("{}: it ended with {:?}", self.what, status?).into()),
            Err(_) => Err(format!("{}: it did not end within {GRACE:?}", self.what).into()),
        }
    }

    /// SIGKILL. Says when that was.
    pub(crate) async fn kill(mut self) -> Result<Instant> {
        let at = Instant::now();
        self.process.start_kill()?;
        self.process.wait().await?;
        Ok(at)
    }
}
