//! The process between podlock and a held command, and the step from the supervisor to the command.
//!
//! * **Authority.** Only the supervisor signals the command. podlock says what to do. Two things must not depend on
//!   podlock, so the supervisor does them by itself. It stops the command when podlock has been silent for too long
//!   (L7), and kills the command when podlock is gone.
//! * **States.** The command runs; it was told to stop; it is dead, with all its descendants. Then the supervisor ends.
//! * **Failures.** If podlock dies in any way, the line between the two ends, and everything is killed. If podlock is
//!   frozen, no message extends the deadline. If the supervisor dies, the kernel kills the command, and podlock
//!   inherits and kills its descendants.
//! * **Not promised.** If both are killed at the same instant, the command dies, but its descendants may not. Nothing
//!   is promised if this process alone is stopped (SIGSTOP).
//!
//! The supervisor has one thread, because the kernel ties a child to the *thread* that made it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpgrp, getpid, getppid, kill_process, kill_process_group,
    set_parent_process_death_signal,
};
use rustix::termios::{tcgetpgrp, tcsetpgrp};

use super::family::{self, NoChildren};
use super::link::{Orders, Report, Word, now};
use super::rule::Told;
use super::{LOST, NOT_FOUND, NOT_RUN, NOT_STARTED, status_of_signal};
use crate::failure::note;

/// The longest sleep. A host that was suspended wakes in the middle of a sleep, and the time limits are checked only
/// after it. Longer: such a command runs on for longer after its limit. Shorter: the supervisor wakes more often.
const LONGEST_SLEEP: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(crate) struct SupervisorArgs {
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    parent: i32,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// The last step before the command: ties this process to the supervisor and replaces it by the command, in a process
/// group of its own.
pub(crate) fn exec(args: &ExecArgs) -> ExitCode {
    let tied = set_parent_process_death_signal(Some(Signal::KILL));
    // If the supervisor died before this call, it sends no signal any more.
    if tied.is_err() || getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(args.parent) {
        note("the command was not started: its supervisor is gone");
        return ExitCode::from(NOT_STARTED);
    }
    // The supervisor blocks all signals, and a child inherits that.
    if let Err(error) = SigSet::empty().thread_set_mask() {
        note(&format!("the command was not started: {error}"));
        return ExitCode::from(NOT_STARTED);
    }
    let Some((program, rest)) = args.command.split_first() else { return ExitCode::from(NOT_STARTED) };
    let error = Command::new(program).args(rest).exec();
    note(&format!("cannot run {}: {error}", program.display()));
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUN })
}

/// Runs the supervisor. Its stdin is the line from podlock.
pub(crate) fn run(args: &SupervisorArgs) -> ExitCode {
    match supervise(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            note(&format!("cannot supervise the command: {error}"));
            let _ = family::kill_all(|_, _| {});
            ExitCode::from(NOT_STARTED)
        }
    }
}

fn supervise(args: &SupervisorArgs) -> io::Result<u8> {
    // No signal ends or stops this process, wherever it comes from. A Ctrl-C goes to podlock, which says what to do.
    let all = SigSet::all();
    all.thread_block()?;
    let signals = SignalFd::with_flags(&all, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    family::adopt_orphans()?;
    family::children()?;
    let line = io::stdin().as_fd().try_clone_to_owned()?;
    let Some((orders, stdin)) = Orders::receive(&line)? else { return Ok(NOT_STARTED) };
    let child = Command::new("/proc/self/exe")
        .arg0("podlock")
        .args(["hold-exec", &getpid().to_string(), "--"])
        .args(&args.command)
        .stdin(stdin)
        .process_group(0)
        .spawn()?;
    let child = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    Supervisor { orders, line, signals, child, told: None, ended: None, terminal: None }.watch()
}

/// Why the watch over the command ended.
enum CommandEnd {
    /// The command ended, either by itself or after it was told to.
    Ended(u8),
    /// The command must be killed.
    Kill,
}

struct Supervisor {
    orders: Orders,
    line: OwnedFd,
    signals: SignalFd,
    child: Pid,
    told: Option<Told>,
    /// How the command ended, for the history.
    ended: Option<Report>,
    /// The terminal, once the command was given its foreground.
    terminal: Option<File>,
}

impl Supervisor {
    /// Returns the exit code when the command and all its descendants are dead.
    fn watch(mut self) -> io::Result<u8> {
        let mut code = None;
        if let CommandEnd::Ended(ended) = self.until_the_end()? {
            code = Some(ended);
        } else {
            // Kills most of them at once. The group's number stays in use as long as its leader is not reaped.
            let _ = kill_process_group(self.child, Signal::KILL);
        }
        family::kill_all(|pid, status| {
            if pid == self.child {
                code = code.or(exit_code(status));
                self.ended = self.ended.or(report(status));
            }
        })?;
        if let Some(report) = self.ended {
            // podlock may be gone. The history then says what its burier saw.
            let _ = report.send(&self.line);
        }
        self.take_terminal_back();
        Ok(match self.told {
            Some(Told { lost: true, .. }) => LOST,
            _ => code.unwrap_or(NOT_STARTED),
        })
    }

    fn until_the_end(&mut self) -> io::Result<CommandEnd> {
        loop {
            match family::reap(WaitOptions::UNTRACED)? {
                Ok(Some((pid, status))) if pid == self.child => {
                    if let Some(signal) = status.stopping_signal() {
                        self.has_stopped(signal);
                    } else if let Some(code) = exit_code(status) {
                        self.ended = report(status);
                        return Ok(CommandEnd::Ended(code));
                    }
                    continue;
                }
                Ok(Some(_)) => continue,
                Ok(None) => {}
                Err(NoChildren) => return Ok(CommandEnd::Ended(NOT_STARTED)),
            }
            if !self.listen()? {
                return Ok(CommandEnd::Kill);
            }
            let now = now();
            if self.told.is_none() && self.orders.limits.term_at(self.orders.answered).is_some_and(|at| now >= at) {
                self.tell_to_stop(true);
            }
            let due = match self.told {
                Some(told) => Some(self.orders.limits.kill_at(told, self.orders.answered)),
                None => self.orders.limits.term_at(self.orders.answered),
            };
            if self.told.is_some() && due.is_some_and(|at| now >= at) {
                return Ok(CommandEnd::Kill);
            }
            self.sleep(due.map_or(LONGEST_SLEEP, |at| at.saturating_sub(now)))?;
        }
    }

    /// Sleeps until something happens, or for at most `most`.
    fn sleep(&self, most: Duration) -> io::Result<()> {
        let most = most.min(LONGEST_SLEEP);
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(most.subsec_nanos()) };
        let mut sources =
            [PollFd::new(&self.line, PollFlags::IN), PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN)];
        match poll(&mut sources, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Only the fact that a signal came matters. SIGCHLD means that there is a child to reap; podlock passes on the
        // others.
        while self.signals.read_signal()?.is_some() {}
        Ok(())
    }

    /// Follows the messages from podlock. Returns `false` if podlock is gone.
    fn listen(&mut self) -> io::Result<bool> {
        loop {
            match Word::receive(&self.line) {
                Ok(Some(Word::Answered(at))) => self.orders.answered = self.orders.answered.max(at),
                Ok(Some(Word::Signal(number))) => {
                    if let Some(signal) = Signal::from_named_raw(number) {
                        self.pass_on(signal);
                    }
                }
                Ok(Some(Word::Drain)) => self.tell_to_stop(false),
                Ok(Some(Word::Lost)) => self.tell_to_stop(true),
                Ok(None) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a signal to the command alone, as if podlock were not there. Stop and continue go to its whole group, as
    /// from a terminal.
    fn pass_on(&self, signal: Signal) {
        let sent = if signal == Signal::TSTP || signal == Signal::CONT {
            kill_process_group(self.child, signal)
        } else {
            kill_process(self.child, signal)
        };
        // The command has not been reaped, so it still exists. The kernel may still refuse if the command changed its
        // user.
        if let Err(error) = sent {
            note(&format!("signal {} could not be sent to the command: {error}", signal.as_raw()));
        }
    }

    fn tell_to_stop(&mut self, lost: bool) {
        match &mut self.told {
            // The command was told for a drain, and now ownership is lost as well. Its time does not begin again.
            Some(told) => told.lost |= lost,
            None => {
                self.told = Some(Told { at: now(), lost });
                self.pass_on(Signal::TERM);
                // A stopped command cannot act on SIGTERM.
                self.pass_on(Signal::CONT);
            }
        }
    }

    /// Handles a stop of the command. If it stopped because it lacks the terminal, and podlock has the terminal, the
    /// command gets it.
    fn has_stopped(&mut self, signal: i32) {
        let signal = Signal::from_named_raw(signal);
        if matches!(signal, Some(Signal::TTIN | Signal::TTOU)) {
            let lent = File::open("/dev/tty").and_then(|terminal| {
                if tcgetpgrp(&terminal)? != getpgrp() {
                    return Ok(None);
                }
                tcsetpgrp(&terminal, self.child)?;
                Ok(Some(terminal))
            });
            if let Ok(Some(terminal)) = lent {
                self.terminal = Some(terminal);
                self.pass_on(Signal::CONT);
            }
        } else if signal == Some(Signal::TSTP)
            && self.terminal.as_ref().is_some_and(|terminal| tcgetpgrp(terminal) == Ok(self.child))
            && let Some(podlock) = getppid()
        {
            // Ctrl-Z: the shell waits for podlock, so podlock must stop as well.
            let _ = kill_process(podlock, Signal::TSTP);
        }
    }

    fn take_terminal_back(&self) {
        if let Some(terminal) = &self.terminal
            && tcgetpgrp(terminal) == Ok(self.child)
        {
            // Ignores the error of a terminal that is gone: it needs no foreground process.
            let _ = tcsetpgrp(terminal, getpgrp());
        }
    }
}

fn report(status: WaitStatus) -> Option<Report> {
    let code = status.exit_status().map(Report::Code);
    code.or_else(|| status.terminating_signal().map(Report::Signal))
}

fn exit_code(status: WaitStatus) -> Option<u8> {
    let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
    code.or_else(|| status.terminating_signal().map(status_of_signal))
}
