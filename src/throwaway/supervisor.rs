//! The thread that makes a server, and starts and stops it on request. It ends together with the server.
//!
//! The kernel ties a child to the thread that spawned it. So all spawning happens here, on one thread that lives as
//! long as the [`Server`](super::Server). The end of the request channel is the signal to shut down.

use std::fs::{self, File};
use std::iter;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, Sender};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::ThrowawayError;
use super::cluster::{self, path_option};
use super::directory::{Directory, end_of_log, io_error};
use super::install::{Account, Installation};
use super::process::{Process, processes, send, tethered_program};

/// How long a server may take before it accepts connections. It takes about a second; a machine that is busy with tests
/// takes many. Longer only delays the report of a server that hangs.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a fast shutdown may take. Also how long the backends of a killed postmaster may take to notice.
const END_WITHIN: Duration = Duration::from_secs(5);
/// How long an immediate shutdown may take. After 5 s of it the postmaster itself kills its children, so this must be
/// longer.
const IMMEDIATE_END_WITHIN: Duration = Duration::from_secs(8);
/// How long SIGKILL and SIGSTOP may take to have an effect. A process that waits for a disk may take seconds.
const SIGNAL_WITHIN: Duration = Duration::from_secs(5);
/// How long a restart waits for its port and its shared memory to become free. A killed server's last backends may keep
/// them for some seconds. A backend that is ending has no name any more, but may still have the memory.
const FREE_WITHIN: Duration = Duration::from_secs(10);
/// How many ports the first start tries. Another process can take a free port before the server does. That happens
/// rarely, so eight failures in a row have another cause.
const PORTS_TRIED: u32 = 8;
/// The time between two checks of a condition. Longer delays every start and stop; shorter costs processor time.
const POLL: Duration = Duration::from_millis(5);

/// The server to start.
pub(super) struct Plan {
    pub(super) installation: Installation,
    pub(super) account: Option<Account>,
    pub(super) settings: Vec<(String, String)>,
    /// Addresses to listen on, in addition to 127.0.0.1.
    pub(super) addresses: Vec<IpAddr>,
}

/// Facts that stay the same as long as the server exists.
#[derive(Clone)]
pub(super) struct Facts {
    pub(super) port: u16,
    pub(super) password: String,
    pub(super) bin_dir: PathBuf,
    pub(super) data_dir: PathBuf,
    pub(super) socket_dir: PathBuf,
    pub(super) log_path: PathBuf,
}

/// The operations that the supervisor can carry out.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operation {
    Pid,
    RestartFast,
    RestartImmediate,
    KillPostmaster,
    Stop,
    StartAgain,
    Pause,
    Resume,
}

/// An operation, and the channel for its result: the postmaster's process id after it.
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) reply: Sender<Result<Option<u32>, ThrowawayError>>,
}

/// The supervisor's thread: makes and starts the server, serves requests until their channel ends, and removes the
/// server.
pub(super) fn run(plan: Plan, started: &Sender<Result<Facts, ThrowawayError>>, inbox: &Receiver<Request>) {
    let mut supervisor = match Supervisor::start(plan) {
        Ok(supervisor) => supervisor,
        Err(error) => {
            // The directory is gone by now: an error is reported when nothing is left.
            let _ = started.send(Err(error));
            return;
        }
    };
    if started.send(Ok(supervisor.facts.clone())).is_err() {
        return;
    }
    for Request { operation, reply } in inbox {
        let outcome = supervisor.carry_out(operation).map(|()| supervisor.pid());
        // The caller may have stopped waiting. The operation was done all the same.
        let _ = reply.send(outcome);
    }
}

struct Supervisor {
    facts: Facts,
    account: Option<Account>,
    addresses: Vec<IpAddr>,
    /// The directory's name, and the server's `cluster_name`.
    name: String,
    postmaster: Option<Child>,
    directory: Directory,
}

impl Supervisor {
    fn start(plan: Plan) -> Result<Self, ThrowawayError> {
        let Plan { installation, account, settings, addresses } = plan;
        let directory = Directory::create(account)?;
        let facts = Facts {
            port: 0,
            password: cluster::random_password()?,
            bin_dir: installation.bin_dir,
            data_dir: directory.data.clone(),
            socket_dir: directory.socket.clone(),
            log_path: directory.log.clone(),
        };
        cluster::create(&directory, &facts, account, &settings)?;
        cluster::admit(&facts, &addresses)?;
        let mut supervisor = Self { facts, account, addresses, name: directory.name(), postmaster: None, directory };

        let mut tries = PORTS_TRIED;
        loop {
            tries -= 1;
            supervisor.facts.port = free_port().map_err(io_error("find a free port", Path::new("127.0.0.1")))?;
            match supervisor.launch() {
                Err(ThrowawayError::NotStarted { log, .. }) if tries > 0 && is_still_taken(&log) => {}
                outcome => return outcome.map(|()| supervisor),
            }
        }
    }

    fn carry_out(&mut self, operation: Operation) -> Result<(), ThrowawayError> {
        self.reap();
        match operation {
            Operation::Pid => Ok(()),
            Operation::RestartFast => self.stop(Signal::INT).and_then(|()| self.start_again()),
            Operation::RestartImmediate => self.stop(Signal::QUIT).and_then(|()| self.start_again()),
            Operation::KillPostmaster => self.kill_postmaster(),
            Operation::Stop => self.stop(Signal::INT),
            Operation::StartAgain => self.start_again(),
            Operation::Pause => self.pause(),
            Operation::Resume => self.resume(),
        }
    }

    /// Starts a postmaster when none of the server's processes is left, and waits until it accepts connections.
    fn launch(&mut self) -> Result<(), ThrowawayError> {
        let Facts { port, data_dir, bin_dir, log_path, socket_dir, .. } = self.facts.clone();
        let log =
            File::options().append(true).create(true).open(&log_path).map_err(io_error("open the log", &log_path))?;
        let errors = log.try_clone().map_err(io_error("open the log", &log_path))?;
        let log_start = log.metadata().map_err(io_error("measure the log", &log_path))?.len();

        let program = bin_dir.join("postgres");
        let addresses: Vec<_> =
            iter::once("127.0.0.1".to_owned()).chain(self.addresses.iter().map(ToString::to_string)).collect();
        let mut socket_setting = path_option("unix_socket_directories=\"", &socket_dir);
        socket_setting.push("\"");
        let postmaster = tethered_program(&program, self.account)
            .arg("-D")
            .arg(&data_dir)
            .args(["-c", &format!("cluster_name={}", self.name)])
            .args(["-c", &format!("port={port}")])
            .args(["-c", &format!("listen_addresses={}", addresses.join(","))])
            .args(["-c", "logging_collector=off", "-c", "log_destination=stderr"])
            .arg("-c")
            .arg(socket_setting)
            .current_dir(self.directory.root())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(io_error("run", &program))?;
        let pid = postmaster.id();
        self.postmaster = Some(postmaster);

        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Some(status) = self.reap() {
                self.await_end(Duration::ZERO)?;
                let (status, log) = (status.to_string(), end_of_log(&log_path, log_start));
                return Err(ThrowawayError::NotStarted { data_dir, port, status, log });
            }
            if fs::read_to_string(data_dir.join("postmaster.pid")).is_ok_and(|text| is_ready(&text, pid)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let log = end_of_log(&log_path, log_start);
                self.stop(Signal::QUIT)?;
                return Err(ThrowawayError::NotReady { data_dir, port, waited_s: READY_WITHIN.as_secs(), log });
            }
            sleep(POLL);
        }
    }

    /// Starts a server that is down, on the port that it had. Waits for that port, and for the
    /// former server's memory, for up to [`FREE_WITHIN`].
    fn start_again(&mut self) -> Result<(), ThrowawayError> {
        if let Some(pid) = self.pid() {
            return Err(ThrowawayError::AlreadyRunning { data_dir: self.facts.data_dir.clone(), pid });
        }
        self.signal_all(Signal::CONT)?;
        self.await_end(END_WITHIN)?;
        let deadline = Instant::now() + FREE_WITHIN;
        loop {
            match self.launch() {
                Err(ThrowawayError::NotStarted { log, .. }) if is_still_taken(&log) && Instant::now() < deadline => {
                    sleep(20 * POLL);
                }
                outcome => return outcome,
            }
        }
    }

    /// Shuts down by `signal`, then by stronger ones. After an `Ok` no process of the server runs.
    fn stop(&mut self, signal: Signal) -> Result<(), ThrowawayError> {
        // A paused process reacts only to SIGKILL.
        self.signal_all(Signal::CONT)?;
        let steps = [(Signal::INT, END_WITHIN), (Signal::QUIT, IMMEDIATE_END_WITHIN)];
        for (step, within) in steps.into_iter().filter(|&(step, _)| step == signal || step == Signal::QUIT) {
            let Some(pid) = self.pid().and_then(to_pid) else { break };
            send(pid, step);
            if !self.postmaster_ends(within) {
                tracing::warn!(
                    data_dir = %self.facts.data_dir.display(), signal = ?step, ?within,
                    "a throwaway server did not shut down in time"
                );
            }
        }
        self.await_end(END_WITHIN)
    }

    /// Waits only for the postmaster.
    fn postmaster_ends(&mut self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            self.reap();
            if self.postmaster.is_none() || Instant::now() >= deadline {
                return self.postmaster.is_none();
            }
            sleep(POLL);
        }
    }

    fn kill_postmaster(&mut self) -> Result<(), ThrowawayError> {
        let pid = self.running("kill the postmaster of")?;
        send(pid, Signal::KILL);
        if let Some(mut postmaster) = self.postmaster.take() {
            postmaster.wait().map_err(io_error("wait for", &self.facts.bin_dir.join("postgres")))?;
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), ThrowawayError> {
        self.running("pause")?;
        let deadline = Instant::now() + SIGNAL_WITHIN;
        loop {
            // A child that was forked meanwhile is found in the next round. A frozen postmaster forks none.
            let awake: Vec<_> = self.processes()?.into_iter().filter(|process| !process.frozen).collect();
            if awake.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                self.signal_all(Signal::CONT)?;
                return Err(ThrowawayError::NotFrozen { data_dir: self.facts.data_dir.clone(), pids: list(&awake) });
            }
            for process in awake {
                send(process.pid, Signal::STOP);
            }
            sleep(POLL / 5);
        }
    }

    fn resume(&mut self) -> Result<(), ThrowawayError> {
        self.running("resume")?;
        self.signal_all(Signal::CONT)
    }

    /// Waits for the end of every process of the server. Those that still run after `within` get SIGKILL.
    fn await_end(&mut self, within: Duration) -> Result<(), ThrowawayError> {
        let politely = Instant::now() + within;
        let at_last = politely + SIGNAL_WITHIN;
        loop {
            self.reap();
            let left = self.processes()?;
            if left.is_empty() {
                return Ok(());
            }
            let now = Instant::now();
            if now >= at_last {
                return Err(ThrowawayError::NotStopped { data_dir: self.facts.data_dir.clone(), pids: list(&left) });
            }
            if now >= politely {
                for process in left {
                    send(process.pid, Signal::KILL);
                }
            }
            sleep(POLL);
        }
    }

    fn processes(&self) -> Result<Vec<Process>, ThrowawayError> {
        processes(&self.name).map_err(io_error("list the processes in", Path::new("/proc")))
    }

    fn signal_all(&self, signal: Signal) -> Result<(), ThrowawayError> {
        for process in self.processes()? {
            send(process.pid, signal);
        }
        Ok(())
    }

    /// The postmaster, or the error that none runs.
    fn running(&self, operation: &'static str) -> Result<Pid, ThrowawayError> {
        self.pid()
            .and_then(to_pid)
            .ok_or_else(|| ThrowawayError::NotRunning { operation, data_dir: self.facts.data_dir.clone() })
    }

    /// Reaps the postmaster if it has ended since the last call, and returns its status.
    fn reap(&mut self) -> Option<ExitStatus> {
        let status = self.postmaster.as_mut()?.try_wait().ok().flatten()?;
        self.postmaster = None;
        Some(status)
    }

    /// The postmaster's process id, as of the last [`Self::reap`].
    fn pid(&self) -> Option<u32> {
        self.postmaster.as_ref().map(Child::id)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Err(error) = self.stop(Signal::INT) {
            tracing::error!(%error, "a throwaway server could not be stopped");
        }
        // The fields are dropped next. The directory's own drop removes the directory.
    }
}

/// Whether the text of `postmaster.pid` says that the postmaster `pid` accepts connections. Line 1 is its process id,
/// line 8 its status (PostgreSQL 10 and later). `pg_ctl` waits in the same way.
fn is_ready(text: &str, pid: u32) -> bool {
    let mut lines = text.lines().map(str::trim);
    lines.next() == Some(&pid.to_string()) && lines.nth(6) == Some("ready")
}

/// Whether the server's log says that its port was taken, or the shared memory of the server before it.
fn is_still_taken(log: &str) -> bool {
    log.contains("Address already in use") || log.contains("pre-existing shared memory block")
}

/// A port of 127.0.0.1 that was free at the time of the check.
///
/// It is random, and below the ports that the system gives to outgoing connections. Otherwise such a connection could
/// take the port while the server is down for a restart.
fn free_port() -> std::io::Result<u16> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let outgoing_from = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32768_u16);
    if outgoing_from > 12_000 {
        for _ in 0..64 {
            let port = fastrand::u16(outgoing_from - 10_000..outgoing_from);
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(port);
            }
        }
    }
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr().map(|address| address.port())
}

fn to_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// The process ids, for a message.
fn list(processes: &[Process]) -> String {
    processes.iter().map(|process| process.pid.to_string()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_read_from_line_eight_of_the_right_postmaster() {
        let file = |pid: u32, status: &str| {
            format!("{pid}\n/d/data\n1790000000\n5432\n/d/socket\n127.0.0.1\n  6557     12\n{status}\n")
        };
        assert!(is_ready(&file(42, "ready   "), 42));
        assert!(!is_ready(&file(42, "starting"), 42));
        assert!(!is_ready(&file(42, "stopping"), 42));
        assert!(!is_ready(&file(43, "ready   "), 42), "left by a killed postmaster");
        assert!(!is_ready("42\n/d/data\n", 42), "still being written");
        assert!(!is_ready("", 42));
    }
}
