//! The errors of a throwaway server.

use std::io;
use std::path::PathBuf;

/// Why a throwaway server could not be started, stopped or put through a fault.
///
/// After an error of [`Builder::start`](super::Builder::start) neither a process nor a directory is left. After an
/// error of one of [`Server`](super::Server)'s methods the directory stays until the `Server` is dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ThrowawayError {
    /// No directory with both `initdb` and `postgres` was found.
    #[error(
        "no PostgreSQL server found: {searched} has no `initdb` and `postgres`; nothing was created; install the \
         server (Debian and Ubuntu: `apt-get install postgresql`), or set PODLOCK_PG_BIN to the directory that has them"
    )]
    NoServer {
        /// The searched places.
        searched: String,
    },

    /// This process is root, and there is no other user to run the server as.
    #[error(
        "PostgreSQL refuses to run as root, and /etc/passwd has no user `postgres` to run it as; nothing was created; \
         create that user (`useradd --system postgres`), or run this as another user than root"
    )]
    NoAccount,

    /// A setting that the builder was given cannot be used.
    #[error("the setting `{name}` was refused: {reason}; nothing was created; leave it out")]
    SettingRefused {
        /// The setting's name.
        name: String,
        /// Why it cannot be used.
        reason: &'static str,
    },

    /// The operating system refused something.
    #[error(
        "could not {doing} ({}): {source}; a first start leaves nothing behind, a server that exists stays until it is \
         dropped; check that TMPDIR (default /tmp) is writable and has space, and the limits on processes and files",
        path.display()
    )]
    Io {
        /// The action, as in "could not …".
        doing: &'static str,
        /// The file, directory, program or thread of the action.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },

    /// `initdb` failed to make the cluster.
    #[error(
        "`initdb` in {} ended with {status}; the directory was removed; if it says `Permission denied`, set TMPDIR to \
         a directory that the server's user may enter; its output:\n{output}", data_dir.display()
    )]
    InitDb {
        /// The data directory that it should have made.
        data_dir: PathBuf,
        /// How `initdb` ended.
        status: String,
        /// The end of its output.
        output: String,
    },

    /// The server ended before it accepted connections.
    #[error(
        "the server in {} did not start on port {port}, it ended with {status}; none of its processes is left; see why \
         in the end of its log, and check the settings given to the builder:\n{log}", data_dir.display()
    )]
    NotStarted {
        /// The server's data directory.
        data_dir: PathBuf,
        /// The TCP port on 127.0.0.1 on which it should have listened.
        port: u16,
        /// How the server ended.
        status: String,
        /// The end of its log since this start.
        log: String,
    },

    /// The server runs, but did not accept connections in time.
    #[error(
        "the server in {} did not accept connections on port {port} within {waited_s} s; it was stopped; see why in \
         the end of its log, or try again on a less busy machine:\n{log}", data_dir.display()
    )]
    NotReady {
        /// The server's data directory.
        data_dir: PathBuf,
        /// The TCP port on 127.0.0.1.
        port: u16,
        /// How long this waited, in seconds.
        waited_s: u64,
        /// The end of its log since this start.
        log: String,
    },

    /// Processes of the server withstand SIGKILL.
    #[error(
        "the processes {pids} of the server in {} are still there 5 s after SIGKILL; they may hang in the kernel on a \
         broken disk or file system; the server is down; try again later", data_dir.display()
    )]
    NotStopped {
        /// The server's data directory.
        data_dir: PathBuf,
        /// Their process ids, separated by spaces.
        pids: String,
    },

    /// Processes of the server could not be frozen in time.
    #[error(
        "the processes {pids} of the server in {} are still running 5 s after SIGSTOP; all were resumed; try again",
        data_dir.display()
    )]
    NotFrozen {
        /// The server's data directory.
        data_dir: PathBuf,
        /// Their process ids, separated by spaces.
        pids: String,
    },

    /// The operation needs a running postmaster, and none runs.
    #[error(
        "cannot {operation} the server in {}: it is down; nothing was done; call `start_again` first",
        data_dir.display()
    )]
    NotRunning {
        /// The requested operation.
        operation: &'static str,
        /// The server's data directory.
        data_dir: PathBuf,
    },

    /// The operation needs a server that is down, and this one runs.
    #[error(
        "cannot start the server in {}: it runs already as process {pid}; nothing was done; call `stop` or \
         `kill_postmaster` first", data_dir.display()
    )]
    AlreadyRunning {
        /// The server's data directory.
        data_dir: PathBuf,
        /// The postmaster's process id.
        pid: u32,
    },

    /// The thread that supervises the server has ended, which is a bug in this module.
    #[error(
        "the thread that supervises the throwaway server panicked; its watchdog stops the server and removes its \
         directory; start another one, and report what the thread printed on stderr"
    )]
    SupervisorGone,
}
