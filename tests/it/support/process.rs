//! Real `podlock pod` processes, for faults that only a process can have.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A reference pod. Killed and reaped when dropped.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts a pod and waits until it is registered. Blocks.
    pub(crate) fn start(url: &str, name: &str, lease: Duration) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_podlock"))
            .args(["pod", "--name", name, "--lease", &format!("{}ms", lease.as_millis())])
            .env("DATABASE_URL", url)
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
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
