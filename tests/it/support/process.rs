//! Real `podlock pod` processes, for faults that only a process can have.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::inherited::clean;
use crate::patience::SOON;

/// A reference pod. Killed and reaped when dropped.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts a pod and waits until it is registered. Blocks.
    pub(crate) fn start(url: &str, name: &str, lease: Duration) -> Self {
        Self::start_with(url, name, lease, &[])
    }

    /// The same, with these variables. Blocks.
    pub(crate) fn start_with(url: &str, name: &str, lease: Duration, variables: &[(&str, &str)]) -> Self {
        let mut child = clean(&mut Command::new(env!("CARGO_BIN_EXE_podlock")))
            .args(["pod", "--name", name, "--lease", &format!("{}ms", lease.as_millis())])
            .env("DATABASE_URL", url)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the podlock command");
        let stdout = child.stdout.take().expect("its output");
        let line = BufReader::new(stdout).lines().next().expect("it says where it listens").expect("text");
        assert!(line.contains("listening"), "{line}");
        Self { child }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("the signal is sent");
    }

    /// Stops the process, and waits until each of its threads has stopped: the signal reaches one of them, and the
    /// others run on until that one was scheduled.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        let began = Instant::now();
        let is_stopped = |task: &std::path::Path| {
            let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        };
        while !std::fs::read_dir(&tasks).expect("its threads").all(|t| is_stopped(&t.expect("a thread").path())) {
            assert!(began.elapsed() < SOON, "it does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
