//! The operating system's part: programs that end with their parent, and the processes of one server.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::process::{Pid, Signal};

use super::install::Account;

/// A live process of a server: its postmaster, or a descendant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: Pid,
    /// Whether SIGSTOP has taken effect.
    pub(super) frozen: bool,
}

/// Finds every process of the server whose `cluster_name` is `name`. A process that has ended and was not reaped does
/// not count.
///
/// Searching for descendants of the postmaster would not work: after its death its children belong to init.
pub(super) fn processes(name: &str) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_str().and_then(|text| text.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { continue };
        // If a process ends between these lines, it is skipped.
        let Ok(command_line) = fs::read(entry.path().join("cmdline")) else { continue };
        if !belongs(&command_line, name) {
            continue;
        }
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        match state(&stat) {
            Some('Z' | 'X') | None => {}
            Some(state) => found.push(Process { pid, frozen: matches!(state, 'T' | 't') }),
        }
    }
    Ok(found)
}

/// Whether a command line belongs to the server `name`: it is a child's title, or has the argument that only the
/// server's postmaster got.
///
/// `watchdog.sh` has the same test.
fn belongs(command_line: &[u8], name: &str) -> bool {
    let title = format!("postgres: {name}: ");
    let argument = format!("cluster_name={name}");
    command_line.starts_with(title.as_bytes())
        || command_line.split(|&byte| byte == 0).any(|word| word == argument.as_bytes())
}

/// The state letter in the text of `/proc/PID/stat`: `PID (NAME) STATE …`, where the name may contain anything.
fn state(stat: &str) -> Option<char> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.trim_start().chars().next()
}

/// Sends a signal. If it cannot be delivered, the process has just ended, which callers check anyway.
pub(super) fn send(pid: Pid, signal: Signal) {
    if let Err(error) = rustix::process::kill_process(pid, signal) {
        tracing::debug!(%error, ?pid, ?signal, "a signal to a throwaway server's process was not delivered");
    }
}

/// A command for one of the server's programs. It runs as `account`, and in its own process group so that a Ctrl-C does
/// not reach it. It does not get our input or our `PG*` variables.
pub(super) fn server_program(program: &Path, account: Option<Account>) -> Command {
    prepared(Command::new(program), account)
}

/// The same as [`server_program`], but the kernel sends it SIGQUIT when the thread that spawned it ends.
///
/// The account is switched before `setpriv` runs, because a change of user clears that order to the kernel. A parent
/// that dies before the order sends no signal. The shell in between sees that its parent has changed, and ends.
pub(super) fn tethered_program(program: &Path, account: Option<Account>) -> Command {
    const CHECK_PARENT: &str = r#"test "$PPID" = "$1" || exit 1; shift; exec "$@""#;
    if !setpriv_works() {
        return server_program(program, account);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "QUIT", "--", "sh", "-c", CHECK_PARENT, "sh"]);
    command.arg(std::process::id().to_string()).arg(program);
    prepared(command, account)
}

fn prepared(mut command: Command, account: Option<Account>) -> Command {
    for (variable, _) in std::env::vars_os().filter(|(name, _)| is_postgres_variable(name)) {
        command.env_remove(variable);
    }
    command.env("LC_ALL", "C").stdin(Stdio::null()).process_group(0);
    if let Some(Account { uid, gid }) = account {
        command.uid(uid).gid(gid);
    }
    command
}

/// Whether it is a variable like `PGDATA` or `PGPORT`, which would change the behaviour of the server's programs.
fn is_postgres_variable(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("PG"))
}

/// Whether there is a `setpriv` with `--pdeathsig` (util-linux 2.33 and later). Checked once per process.
fn setpriv_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        let works = Command::new("setpriv")
            .args(["--pdeathsig", "QUIT", "--", "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !works {
            tracing::warn!(
                "no `setpriv --pdeathsig` (util-linux): if this process and the watchdog of a throwaway server are \
                 killed together, the server goes on running; install util-linux to rule that out"
            );
        }
        works
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_processes_of_the_named_server_belong_to_it() {
        let name = "podlock-throwaway-aB3xYz";
        assert!(belongs(b"postgres: podlock-throwaway-aB3xYz: checkpointer \0\0\0", name));
        assert!(belongs(
            b"/bin/postgres\0-D\0/tmp/x/data\0-c\0cluster_name=podlock-throwaway-aB3xYz\0-c\0port=1\0",
            name
        ));
        assert!(!belongs(b"postgres: podlock-throwaway-aB3xYzz: checkpointer \0", name));
        assert!(!belongs(b"postgres: checkpointer \0", name));
        assert!(!belongs(b"tail\0-f\0/tmp/podlock-throwaway-aB3xYz/server.log\0", name));
        assert!(!belongs(b"grep\0cluster_name=podlock-throwaway-aB3xYz2\0", name));
        assert!(!belongs(b"", name));
    }

    #[test]
    fn the_state_follows_the_last_parenthesis() {
        assert_eq!(state("12 (postgres) S 1 12"), Some('S'));
        assert_eq!(state("12 (a) T (b) Z) T 1 12"), Some('T'));
        assert_eq!(state("12"), None);
        assert_eq!(state(""), None);
    }
}
