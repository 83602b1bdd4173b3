//! A private PostgreSQL server from the system's packages, for demos and tests.
//!
//! [`Server::builder`] makes a new cluster in a temporary directory, starts a server on it, and returns its addresses.
//! Dropping the [`Server`] stops the server and removes the directory. Nothing is downloaded, and nothing is stored
//! outside of that directory. So any number of servers can run side by side.
//!
//! ```no_run
//! use podlock::throwaway::Server;
//!
//! let server = Server::builder().setting("max_connections", "50").start()?;
//! println!("psql '{}'", server.url("postgres"));
//! server.restart_immediate()?; // as after a crash: every connection breaks, committed data stays
//! # Ok::<(), podlock::throwaway::ThrowawayError>(())
//! ```
//!
//! # The directory
//!
//! `podlock-throwaway-XXXXXX` in [`std::env::temp_dir`]. Only its owner may enter it, and the server's account if the
//! owner is root:
//!
//! | name | what |
//! | --- | --- |
//! | `owner.lock` | locked (`flock`) for as long as the owning process lives |
//! | `data/` | the cluster |
//! | `socket/` | the unix socket |
//! | `initdb.log`, `server.log` | what these wrote on stderr |
//!
//! # The server never outlives its owner
//!
//! Three independent mechanisms ensure that:
//!
//! 1. [`Drop`] stops the server. It runs on every orderly exit.
//! 2. A watchdog, a small shell script in a process group of its own, waits for the end of a pipe that only the owner
//!    holds open. However the owner dies, SIGKILL included, the watchdog ends the server, even a paused one, and
//!    removes the directory. A `Server` in a `static`, which is never dropped, is cleaned up in this way too.
//! 3. The kernel sends SIGQUIT to the server when its parent dies (`PR_SET_PDEATHSIG`, set by `setpriv` of
//!    util-linux, because setting it here would need `unsafe`). This works even if the watchdog was killed together
//!    with the owner. Without `setpriv` this line of defence is missing and the other two remain.
//!
//! Only `initdb` is not killed: it ends by itself within about a second. If killed, it would leak shared memory.
//!
//! If a machine or a container stops all of them at once, a directory may stay behind. The next start of any throwaway
//! server of the same user removes it. A directory is stale if its `owner.lock` is free.
//!
//! `PR_SET_PDEATHSIG` reacts to the end of the parent *thread*. So every server has a thread of its own, which starts
//! the server and lives as long as it.
//!
//! # What is not promised
//!
//! Linux only (`/proc`, `flock`). No durability: `fsync` is off unless [`Builder::setting`] says otherwise, so
//! committed data survives a crash of the server, but not a crash of the machine. Its unix socket trusts everyone who
//! can reach it: its owner, root and the server's account.

mod cluster;
mod directory;
mod error;
mod install;
mod process;
mod supervisor;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use cluster::SUPERUSER;
pub use error::ThrowawayError;
use supervisor::{Facts, Operation, Plan, Request};

/// How to start a throwaway [`Server`]; see [`Server::builder`].
#[derive(Debug, Clone, Default)]
pub struct Builder {
    settings: Vec<(String, String)>,
    addresses: Vec<IpAddr>,
    bin_dir: Option<PathBuf>,
}

impl Builder {
    /// Adds a line to the server's `postgresql.conf`: `name` is the setting, `value` its value without quotes.
    ///
    /// The last line for a name takes precedence, also over the defaults. The defaults are `fsync=off`,
    /// `full_page_writes=off`, `synchronous_commit=on`, `max_connections=300`, `shared_buffers=64MB`, `autovacuum=on`,
    /// `log_lock_waits=on`, `deadlock_timeout=1s`, `timezone=UTC`, a `log_line_prefix` with time, process, user,
    /// database and application, and `dynamic_shared_memory_type=mmap`, which leaves nothing in `/dev/shm` when a
    /// server is killed.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Listens also on this address of the machine, not only on 127.0.0.1, for clients that have the password. For
    /// example the address of a network namespace in which the server is started. [`Server::url`] still names
    /// 127.0.0.1.
    #[must_use]
    pub fn listen(mut self, address: IpAddr) -> Self {
        self.addresses.push(address);
        self
    }

    /// Uses `initdb` and `postgres` from this directory, and searches nowhere else.
    ///
    /// Without it, the directory is the environment's `PODLOCK_PG_BIN`, or else the newest `/usr/lib/postgresql/*/bin`
    /// that has both, or else the answer of `pg_config --bindir`, or else the first in `PATH`.
    #[must_use]
    pub fn bin_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.bin_dir = Some(directory.into());
        self
    }

    /// Makes a cluster, starts a server on it and waits until it accepts connections. Takes about a second.
    ///
    /// This blocks: from async code call it on `tokio::task::spawn_blocking`. PostgreSQL refuses to run as root. If
    /// this process is root, the server runs as the user `postgres`, and otherwise as the current user.
    ///
    /// # Errors
    ///
    /// [`ThrowawayError`] says what failed, with the end of the server's log if there is one. After an error no process
    /// and no directory is left.
    pub fn start(self) -> Result<Server, ThrowawayError> {
        cluster::check_settings(&self.settings)?;
        let plan = Plan {
            installation: install::Installation::find(self.bin_dir.as_deref())?,
            account: install::Account::for_server()?,
            settings: self.settings,
            addresses: self.addresses,
        };
        directory::remove_stale();

        let (started, start) = mpsc::channel();
        let (requests, inbox) = mpsc::channel();
        let supervisor = std::thread::Builder::new()
            .name("podlock-throwaway".to_owned())
            .spawn(move || supervisor::run(plan, &started, &inbox))
            .map_err(|source| ThrowawayError::Io {
                doing: "start the thread that supervises a throwaway server",
                path: PathBuf::from("podlock-throwaway"),
                source,
            })?;
        let facts = match start.recv() {
            Ok(outcome) => outcome?,
            Err(mpsc::RecvError) => return Err(ThrowawayError::SupervisorGone),
        };
        Ok(Server { facts, requests: Some(requests), supervisor: Some(supervisor) })
    }
}

/// A running throwaway PostgreSQL server: its addresses, and the faults that a test can cause.
///
/// Every method blocks until its effect is complete, and none is async. From async code, call those that return a
/// [`Result`] on `tokio::task::spawn_blocking`. Several threads may call them. They run one after the other.
///
/// Dropping it blocks, too. It begins a fast shutdown, after 5 s an immediate one, and after another 8 s sends SIGKILL
/// to the remaining processes. Then it removes the directory. After the drop no process and no directory is left. In
/// async code, drop it on `spawn_blocking` as well.
pub struct Server {
    facts: Facts,
    /// Dropped before the join: the end of this channel tells the supervisor to shut down.
    requests: Option<mpsc::Sender<Request>>,
    supervisor: Option<JoinHandle<()>>,
}

impl Server {
    /// Returns a builder for a server.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The URL of `database` over TCP on 127.0.0.1 with user and password, as libpq and `tokio-postgres` read it.
    ///
    /// `database` may be any name; it is quoted as needed. The database is not created. A new server has `postgres`.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgresql://{}:{}@127.0.0.1:{}/{}",
            percent_encode(SUPERUSER.as_bytes()),
            percent_encode(self.facts.password.as_bytes()),
            self.facts.port,
            percent_encode(database.as_bytes())
        )
    }

    /// The URL of `database` over the unix socket, which needs no password.
    #[must_use]
    pub fn socket_url(&self, database: &str) -> String {
        use std::os::unix::ffi::OsStrExt as _;
        format!(
            "postgresql://{}@{}:{}/{}",
            percent_encode(SUPERUSER.as_bytes()),
            percent_encode(self.facts.socket_dir.as_os_str().as_bytes()),
            self.facts.port,
            percent_encode(database.as_bytes())
        )
    }

    /// The superuser's name.
    #[must_use]
    pub fn user(&self) -> &str {
        SUPERUSER
    }

    /// The superuser's password: random, hexadecimal, and needed over TCP only (SCRAM-SHA-256).
    #[must_use]
    pub fn password(&self) -> &str {
        &self.facts.password
    }

    /// The TCP port on 127.0.0.1. It stays the same over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.facts.port
    }

    /// The directory of the unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.facts.socket_dir
    }

    /// The cluster's data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.facts.data_dir
    }

    /// The directory of the server's programs. Some distributions have `psql` and other clients elsewhere.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.facts.bin_dir
    }

    /// The server's log file. Restarts append to it.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.facts.log_path
    }

    /// The whole log so far; bytes that are not UTF-8 are replaced.
    ///
    /// # Errors
    ///
    /// [`ThrowawayError::Io`] if the file cannot be read.
    pub fn log_text(&self) -> Result<String, ThrowawayError> {
        match std::fs::read(&self.facts.log_path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(source) => {
                Err(ThrowawayError::Io { doing: "read the server's log", path: self.facts.log_path.clone(), source })
            }
        }
    }

    /// The process id of the postmaster, or `None` while it is not running.
    #[must_use]
    pub fn postmaster_pid(&self) -> Option<u32> {
        self.ask(Operation::Pid).ok().flatten()
    }

    /// Stops the server by a fast shutdown (open transactions are aborted), then starts it on the same port.
    ///
    /// This also works on a paused server. A shutdown that takes longer than 5 s becomes an immediate one.
    ///
    /// # Errors
    ///
    /// As [`Server::start_again`]. The server is down then, and may be started again.
    pub fn restart_fast(&self) -> Result<(), ThrowawayError> {
        self.ask(Operation::RestartFast).map(drop)
    }

    /// Stops the server at once without a checkpoint, as a crash would, then starts it on the same port.
    ///
    /// The start replays the log. This returns when the server accepts connections again.
    ///
    /// # Errors
    ///
    /// As [`Server::start_again`]. The server is down then, and may be started again.
    pub fn restart_immediate(&self) -> Result<(), ThrowawayError> {
        self.ask(Operation::RestartImmediate).map(drop)
    }

    /// Kills only the postmaster, by SIGKILL.
    ///
    /// Its port is closed when this returns. The backends notice by themselves: an idle one ends at once, one that
    /// computes ends when its statement does. [`Server::start_again`] waits for them.
    ///
    /// # Errors
    ///
    /// [`ThrowawayError::NotRunning`] if there is no postmaster.
    pub fn kill_postmaster(&self) -> Result<(), ThrowawayError> {
        self.ask(Operation::KillPostmaster).map(drop)
    }

    /// Stops the server by a fast shutdown, and keeps its directory for [`Server::start_again`].
    ///
    /// After 5 s the shutdown becomes an immediate one. After another 8 s the remaining processes get SIGKILL. On a
    /// server that is down, this only ends the backends that a killed postmaster left.
    ///
    /// # Errors
    ///
    /// [`ThrowawayError::NotStopped`] if a process withstands SIGKILL for 5 s.
    pub fn stop(&self) -> Result<(), ThrowawayError> {
        self.ask(Operation::Stop).map(drop)
    }

    /// Starts a server that is down, on the same port and data, and waits until it accepts connections.
    ///
    /// If the postmaster was killed, this first waits up to 5 s for its backends to end by themselves. Those that do
    /// not get SIGKILL: PostgreSQL starts only when no backend uses the shared memory any more.
    ///
    /// # Errors
    ///
    /// [`ThrowawayError::AlreadyRunning`] if it is not down. [`ThrowawayError::NotStarted`] if the server gives up, for
    /// example because another process has had the port for 10 s. [`ThrowawayError::NotReady`] if it takes longer than
    /// 60 s. In the last two cases the server is down, and may be started again.
    pub fn start_again(&self) -> Result<(), ThrowawayError> {
        self.ask(Operation::StartAgain).map(drop)
    }

    /// Freezes the postmaster and every process of its server by SIGSTOP, until [`Server::resume`].
    ///
    /// As with a hung machine, connections stay open and the kernel accepts new ones, but nothing answers. When this
    /// returns, no process of the server runs any more.
    ///
    /// # Errors
    ///
    /// [`ThrowawayError::NotRunning`] if there is no postmaster. [`ThrowawayError::NotFrozen`] if a process is not
    /// stopped after 5 s; all of them were resumed then.
    pub fn pause(&self) -> Result<(), ThrowawayError> {
        self.ask(Operation::Pause).map(drop)
    }

    /// Resumes a paused server. Does nothing to one that is not paused.
    ///
    /// # Errors
    ///
    /// [`ThrowawayError::NotRunning`] if there is no postmaster.
    pub fn resume(&self) -> Result<(), ThrowawayError> {
        self.ask(Operation::Resume).map(drop)
    }

    /// Asks the supervisor to carry out `operation`, and waits for the result.
    fn ask(&self, operation: Operation) -> Result<Option<u32>, ThrowawayError> {
        let (reply, outcome) = mpsc::channel();
        let requests = self.requests.as_ref().ok_or(ThrowawayError::SupervisorGone)?;
        requests.send(Request { operation, reply }).map_err(|_| ThrowawayError::SupervisorGone)?;
        outcome.recv().map_err(|_| ThrowawayError::SupervisorGone)?
    }
}

/// Shows the server's address, but not its password.
impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Server")
            .field("port", &self.facts.port)
            .field("data_dir", &self.facts.data_dir)
            .finish_non_exhaustive()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(supervisor) = self.supervisor.take()
            && supervisor.join().is_err()
        {
            tracing::error!(
                data_dir = %self.facts.data_dir.display(),
                "the thread that supervised a throwaway server panicked; its watchdog stops the server and removes it"
            );
        }
    }
}

/// Percent-encodes all bytes except RFC 3986's unreserved characters.
fn percent_encode(bytes: &[u8]) -> String {
    let mut encoded = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_can_be_shared_between_threads() {
        fn shareable<T: Send + Sync + 'static>() {}
        shareable::<Server>();
        shareable::<ThrowawayError>();
    }

    #[test]
    fn percent_encoding_keeps_only_unreserved_characters() {
        assert_eq!(percent_encode(b"aZ09-._~"), "aZ09-._~");
        assert_eq!(percent_encode(b"/tmp/a b"), "%2Ftmp%2Fa%20b");
        assert_eq!(percent_encode("p@ss:w/rd?#%ü".as_bytes()), "p%40ss%3Aw%2Frd%3F%23%25%C3%BC");
        assert_eq!(percent_encode(b""), "");
    }
}
