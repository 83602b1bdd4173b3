//! A standby that streams from a scenario's server, and can be promoted.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use podlock::throwaway::Server;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::inherited;
use crate::own_server::OwnServer;
use crate::world::{START, connect, eventually, try_connect};

/// How long a shutdown may take.
const END: Duration = Duration::from_secs(5);

pub(crate) struct Standby {
    port: u16,
    user: String,
    /// `None` once it is being dropped.
    process: Option<(Child, TempDir)>,
    socket: PathBuf,
}

impl Standby {
    /// Copies `primary` and follows it. Must be called on a thread that lives as long as the standby is to: the kernel
    /// ends it with that thread.
    pub(crate) async fn of(primary: &OwnServer) -> Self {
        let dir = tempfile::Builder::new().prefix("podlock-standby-").tempdir().expect("a directory");
        if let Some((uid, gid)) = account() {
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).expect("chown");
        }
        let data = dir.path().join("data");
        let mut copy = program(primary, "pg_basebackup");
        copy.arg("-D").arg(&data).args(["-R", "-X", "stream", "-c", "fast", "-d", &primary.url("postgres")]);
        let copied: Output = tokio::task::spawn_blocking(move || copy.output()).await.unwrap().expect("pg_basebackup");
        assert!(copied.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&copied.stderr));
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = std::fs::File::create(dir.path().join("server.log")).expect("a log file");
        let mut postgres = program(primary, "postgres");
        postgres.arg("-D").arg(&data).args(["-c", &format!("port={port}"), "-c", "listen_addresses=127.0.0.1"]);
        postgres.args(["-c", &format!("unix_socket_directories={}", dir.path().display())]);
        let process = postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("postgres");
        let socket = dir.path().to_owned();
        let standby = Self { port, user: primary.user().to_owned(), process: Some((process, dir)), socket };
        let url = standby.socket_url("postgres");
        eventually(START, "the standby follows", async || {
            let client = try_connect(&url).await.map_err(|e| e.to_string())?;
            let row = client.query_opt("SELECT status FROM pg_stat_wal_receiver", &[]).await;
            match row.map_err(|e| e.to_string())?.map(|row| row.get::<_, Option<String>>(0)) {
                Some(Some(status)) if status == "streaming" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        standby
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// For a superuser.
    pub(crate) fn socket_url(&self, database: &str) -> String {
        format!("host={} port={} user={} dbname={database}", self.socket.display(), self.port, self.user)
    }

    /// From now on it is given nothing more of what its primary commits. Returns once that is so.
    pub(crate) async fn stops_following(&self) {
        let client = connect(&self.socket_url("postgres")).await;
        client.batch_execute("ALTER SYSTEM SET primary_conninfo = ''").await.expect("set");
        client.batch_execute("SELECT pg_reload_conf()").await.expect("reloaded");
        eventually(START, "nothing is received any more", async || {
            let receivers =
                client.query("SELECT pid FROM pg_stat_wal_receiver", &[]).await.map_err(|e| e.to_string())?;
            if receivers.is_empty() { Ok(()) } else { Err(format!("{} receivers", receivers.len())) }
        })
        .await;
    }

    /// Stops what receives the primary's log, which the primary sees as a standby that does not answer.
    pub(crate) async fn hangs(&self) -> Receiver {
        let client = connect(&self.socket_url("postgres")).await;
        let row = client.query_one("SELECT pid FROM pg_stat_wal_receiver", &[]).await.expect("it follows");
        let receiver = Receiver::of(row.get(0));
        receiver.stops();
        receiver
    }

    /// Makes a primary of it; returns once it takes writes.
    pub(crate) async fn promote(&self) {
        let client = connect(&self.socket_url("postgres")).await;
        let done: bool = client.query_one("SELECT pg_promote()", &[]).await.expect("promoted").get(0);
        assert!(done, "the standby was not promoted in time");
    }
}

/// The process of a standby's that receives its primary's log.
pub(crate) struct Receiver(Pid);

impl Receiver {
    pub(crate) fn of(pid: i32) -> Self {
        Self(Pid::from_raw(pid).expect("a process"))
    }

    /// What the primary sends from now on waits in the connection.
    pub(crate) fn stops(&self) {
        kill_process(self.0, Signal::STOP).expect("stopped");
    }

    /// It ends before it reads what waits in the connection.
    pub(crate) fn ends(self) {
        kill_process(self.0, Signal::TERM).expect("told to end");
        kill_process(self.0, Signal::CONT).expect("woken");
    }

    pub(crate) fn goes_on(self) {
        kill_process(self.0, Signal::CONT).expect("woken");
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        let Some((mut process, dir)) = self.process.take() else { return };
        let keep = std::thread::panicking();
        std::thread::spawn(move || {
            // Immediately, and by the server itself: killed, it would leave shared memory behind.
            let _ = kill_process(Pid::from_child(&process), Signal::QUIT);
            let began = Instant::now();
            while matches!(process.try_wait(), Ok(None)) {
                if began.elapsed() > END {
                    let _ = process.kill();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            if keep {
                eprintln!("the standby's log is in {}", dir.keep().display());
            }
        });
    }
}

/// One of the server's programs: it ends with the thread that spawns it, and is not run as root.
fn program(server: &Server, name: &str) -> Command {
    let mut command = Command::new("setpriv");
    inherited::clean(&mut command);
    command.args(["--pdeathsig", "QUIT", "--"]).arg(server.bin_dir().join(name)).env("LC_ALL", "C");
    if let Some((uid, gid)) = account() {
        command.uid(uid).gid(gid);
    }
    command
}

/// PostgreSQL's programs refuse root: then they run as `postgres`.
pub(crate) fn account() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let id = |flag| {
        let output = Command::new("id").args([flag, "postgres"]).output().expect("id");
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("an account postgres")
    };
    Some((id("-u"), id("-g")))
}
