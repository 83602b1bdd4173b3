//! What a test program inherits from whatever started it, and what its tests must not depend on.
//!
//! A script that starts a program in the background has it ignore SIGINT and SIGQUIT, `nohup` SIGHUP; a program that is
//! started so starts its children so, and podlock keeps what it was started to ignore (`docs/hold.md`). A umask, a time
//! zone, a locale and a `PGHOST` are inherited too.
//!
//! [`reset`] is for the test program itself, before it starts anything; [`clean`] for each process that it starts.

#![allow(dead_code, reason = "no test program uses all of it")]

use std::process::Command;
use std::sync::Once;

use rustix::fs::Mode;
use tokio::signal::unix::{SignalKind, signal};

/// The kernel's numbers of signals that no program can catch, and of faults, which no program should.
const NOT_TO_BE_CAUGHT: [i32; 6] = [4, 8, 9, 11, 19, 31];
/// SIGPIPE. Rust's runtime ignores this signal in each program, and gives children the default again.
const BY_RUST: i32 = 13;

/// Undoes what this process inherited, once.
///
/// A signal that is ignored would be ignored by all children. A signal that is caught is not: `exec` gives it its
/// default again. So what is ignored is caught here, by a handler that does nothing: for this process nothing changes.
/// The handlers stay for the life of the process. SIGCHLD is one of them: where it is ignored, no child can be waited
/// for.
pub(crate) fn reset() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let ignored = ignored_signals();
        if ignored.is_empty() {
            return;
        }
        // On a thread of its own: the caller may be on a runtime.
        let catch = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let _context = runtime.enter();
            for number in ignored {
                let caught = signal(SignalKind::from_raw(number));
                assert!(caught.is_ok(), "signal {number} is not caught: {caught:?}");
            }
        };
        std::thread::spawn(catch).join().expect("the ignored signals are caught");
    });
}

/// A PostgreSQL server of the tests' own, which inherits nothing of this either.
pub(crate) fn postgres() -> podlock::throwaway::Builder {
    reset();
    podlock::throwaway::Server::builder()
}

/// What this process ignores, but for what it cannot change or need not.
fn ignored_signals() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").expect("this process's status");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("the ignored signals");
    let mask = u64::from_str_radix(mask.trim(), 16).expect("a mask");
    let ignored = |number: &i32| mask >> (number - 1) & 1 == 1 && *number != BY_RUST;
    (1..32).filter(ignored).filter(|number| !NOT_TO_BE_CAUGHT.contains(number)).collect()
}

/// Takes from a command everything of the environment that could matter to podlock, to libpq, or to what they print.
pub(crate) fn clean(command: &mut Command) -> &mut Command {
    const PREFIXES: [&str; 8] = ["PODLOCK_", "PG", "CHAOS_", "LC_", "CLICOLOR", "OTEL_", "PATRONI_", "ETCD_"];
    const NAMES: [&str; 12] = [
        "DATABASE_URL",
        "POD_NAME",
        "RUST_LOG",
        "RUST_BACKTRACE",
        "NO_COLOR",
        "FORCE_COLOR",
        "COLUMNS",
        "LINES",
        "LANG",
        "LANGUAGE",
        "NOTIFY_SOCKET",
        "ENV",
    ];
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        let proxy = name.to_ascii_lowercase().ends_with("_proxy");
        if proxy || NAMES.contains(&&*name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(variable);
        }
    }
    reset();
    command.env("TZ", "UTC")
}
