//! `podlock hold`: holds a pod's lock while a command runs that does not link podlock.
//!
//! There are three processes: podlock, which holds the pod; its supervisor, which alone controls the command; and the
//! command. [`supervisor`] describes what each does when another one dies or freezes.

mod family;
mod link;
mod rule;
mod supervisor;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use podlock::history::ProcessExit;
use podlock::{Config, ErrorKind, Incarnation, OnDetach, Pod, PodId};
use rustix::process::{Pid, Signal, getpid, kill_process};
use tokio::process::{Child, Command};

use crate::failure::{Failure, note, note_error};
use crate::global::Global;
use crate::pod::logs::LogArgs;
use crate::pod::{label, lease};
use crate::signals::Passed;

use link::{Orders, Report, Word, now};
use rule::Limits;

pub(crate) use supervisor::{ExecArgs, SupervisorArgs, exec, run as supervise};

/// Exit code: ownership was lost, and the command was stopped because of that.
const LOST: u8 = 124;
/// Exit code: the command was not started, because the name is taken, the database cannot be reached, ...
const NOT_STARTED: u8 = 125;
/// Exit code: the program exists but cannot be run.
const NOT_RUN: u8 = 126;
/// Exit code: the program does not exist.
const NOT_FOUND: u8 = 127;

/// How long it may take to record that the end is a clean one. The command has ended by then, so whoever waits for
/// podlock waits for this. Without the record, the log says that the pod was lost.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long it may take to record how the command ended. Longer delays whoever waits for podlock; shorter loses the record
/// if the database is slow.
const NOTE_AT_MOST: Duration = Duration::from_millis(500);
/// The pause between two tries of it. The row is locked for a moment at most.
const NOTE_AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
#[command(after_help = include_str!("help.txt").trim_end())]
pub(crate) struct Args {
    /// The pod's name [env: POD_NAME] [default: a random one, but not where PODLOCK_ENV=production]
    #[arg(long)]
    name: Option<PodId>,
    /// The time from SIGTERM to SIGKILL when podlock stops the command; shorter if the lease ends sooner
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// How long to wait for a name that another pod holds [env: PODLOCK_ACQUIRE_TIMEOUT] [default: 2 × lease]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    /// How long the server lets a silent session live [env: PODLOCK_LEASE] [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = lease)]
    lease: Option<Duration>,
    /// A label that operators see; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    logs: LogArgs,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    // The log shares stderr with the command, so podlock logs only warnings and errors.
    args.logs.start("warn")?;
    let mut signals = Passed::listen()?;
    // No signal reports children that ended before this process listened for signals.
    family::reap_others(None)?;
    let config = args.config(global).map_err(not_started)?;
    let starting = Pod::builder(config).start();
    tokio::pin!(starting);
    let pod = loop {
        tokio::select! {
            pod = &mut starting => break pod.map_err(|e| not_started(e.into()))?,
            signal = signals.next() => match signal {
                Signal::TERM | Signal::INT | Signal::HUP | Signal::QUIT => {
                    return Err(Failure::Command(status_of_signal(signal.as_raw())));
                }
                Signal::TSTP => stop_self(),
                Signal::CHILD => family::reap_others(None)?,
                // There is no command yet that the other signals could be meant for.
                _ => {}
            },
        }
    };
    let outcome = hold(&pod, &args, &mut signals).await;
    let name = pod.pod_id().clone();
    // The command is dead, so the lock may be released. It is no failure of the command if the clean end could not be
    // recorded.
    if let Err(error) = pod.shutdown(FAREWELL).await {
        note_error(&format!("pod {name}"), &error);
    }
    outcome
}

impl Args {
    /// The environment's settings, overridden by the command line.
    fn config(&self, global: &Global) -> Result<Config, Failure> {
        let mut config = global.config()?;
        if let Some(name) = &self.name {
            config = config.name(name.as_str());
        }
        if let Some(lease) = self.lease {
            config = config.lease(lease);
        }
        if let Some(wait) = self.wait {
            config = config.with(|c| c.acquire_timeout = Some(wait));
        }
        for (key, value) in &self.labels {
            config = config.label(key, value);
        }
        if config.version.is_empty() {
            config = config.version(env!("CARGO_PKG_VERSION"));
        }
        config.validate()?;
        Ok(config)
    }
}

/// Runs the command under the pod's current incarnation, until neither it nor a descendant is left.
async fn hold(pod: &Pod, args: &Args, signals: &mut Passed) -> Result<(), Failure> {
    let incarnation = pod.incarnation();
    let mut held = Held::start(pod, incarnation, args).map_err(|e| not_started(e.into()))?;
    let mut ticks = tokio::time::interval(pod.settings().hold_probe_interval);
    let (mut lost, mut draining) = (false, false);
    let mut passed: Option<(Signal, Instant)> = None;
    let status = loop {
        tokio::select! {
            status = held.supervisor.wait() => break status?,
            _ = ticks.tick() => if !lost { held.say(Word::Answered(answered(pod))) },
            signal = signals.next() => {
                if signal == Signal::CHILD {
                    family::reap_others(held.pid())?;
                    continue;
                }
                if matches!(signal, Signal::TERM | Signal::INT | Signal::HUP | Signal::QUIT) {
                    passed = Some((signal, Instant::now()));
                }
                held.say(Word::Signal(signal.as_raw()));
                if signal == Signal::TSTP {
                    stop_self();
                }
            }
            () = pod.over(incarnation), if !lost => {
                lost = true;
                let why = pod.failure().unwrap_or("it was silent for too long, evicted or buried");
                note(&format!("pod {} ({incarnation}) is over: {why}; stopping the command", pod.pod_id()));
                held.say(Word::Lost);
            }
            () = pod.drain_requested(), if !draining => {
                draining = true;
                held.say(Word::Drain);
            }
        }
    };
    if let Some(report) = held.report().filter(|_| !lost) {
        let asked = passed.is_some_and(|(signal, at)| ends_by(signal, at.elapsed(), args.grace, report));
        note_exit(pod, report, asked || draining).await;
    }
    held.end(status)
}

/// Whether the command ended because of a signal that was passed on so long ago: by that very signal, or soon after one that
/// asks to stop. Many programs reload at a SIGHUP, so an exit after it is no answer to it.
fn ends_by(signal: Signal, ago: Duration, grace: Duration, report: Report) -> bool {
    report == Report::Signal(signal.as_raw()) || (signal != Signal::HUP && ago <= grace)
}

/// Records how the command ended. A failure only makes the history poorer.
async fn note_exit(pod: &Pod, report: Report, was_asked: bool) {
    let exit = match report {
        Report::Code(code) => ProcessExit::code(code),
        Report::Signal(signal) => ProcessExit::signal(signal),
    };
    let exit = if was_asked { exit.was_asked() } else { exit };
    let noted = tokio::time::timeout(NOTE_AT_MOST, async {
        loop {
            match pod.note_exit(exit).await {
                // The pod itself may be writing its row.
                Err(error) if error.kind() == ErrorKind::Timeout => tokio::time::sleep(NOTE_AGAIN).await,
                noted => return noted,
            }
        }
    });
    match noted.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => note_error(&format!("pod {}", pod.pod_id()), &error),
        Err(_) => note(&format!("pod {}: how the command ended could not be recorded in time", pod.pod_id())),
    }
}

/// When the last answered ping was sent. The clock is read first, so the result is never later than the real moment.
fn answered(pod: &Pod) -> Duration {
    let now = now();
    now.saturating_sub(pod.silent_for())
}

/// Ctrl-Z: stops podlock, so that the shell that waits for it takes the terminal back. The supervisor keeps running and
/// keeps the deadline.
fn stop_self() {
    let _ = kill_process(getpid(), Signal::STOP);
}

struct Held {
    supervisor: Child,
    /// `None` once the supervisor does not read: then the end of the line is the last message.
    line: Option<OwnedFd>,
}

impl Held {
    fn start(pod: &Pod, incarnation: Incarnation, args: &Args) -> io::Result<Self> {
        // If the supervisor is killed, its descendants become children of this process.
        family::adopt_orphans()?;
        let settings = pod.settings();
        let limits = Limits {
            self_fence: (settings.on_detach == OnDetach::Cancel).then_some(settings.self_fence),
            last: settings.lease.mul_f64(0.95),
            grace: args.grace,
        };
        let (line, theirs) = link::pair()?;
        Orders { limits, answered: answered(pod) }.send(&line, io::stdin())?;
        // This path works even if the program's file was replaced after the start.
        let mut command = std::process::Command::new("/proc/self/exe");
        command.arg0("podlock").args(["hold-supervisor", "--"]).args(&args.command).stdin(Stdio::from(theirs));
        command.env("PODLOCK_POD", pod.pod_id().as_str()).env("PODLOCK_INCARNATION", incarnation.to_string());
        Ok(Self { supervisor: Command::from(command).spawn()?, line: Some(line) })
    }

    fn pid(&self) -> Option<Pid> {
        self.supervisor.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
    }

    fn say(&mut self, word: Word) {
        let Some(line) = &self.line else { return };
        match word.send(line) {
            // A supervisor that has ended is being waited for already. A stopped supervisor learns from the next
            // message what it missed. But `Lost` and `Drain` are sent only once, so they must not be missed.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if matches!(word, Word::Lost | Word::Drain) {
                    self.line = None;
                }
            }
            _ => {}
        }
    }

    /// How the command ended. `None`: the supervisor did not say.
    fn report(&self) -> Option<Report> {
        self.line.as_ref().and_then(Report::receive)
    }

    /// The result of the command, from the supervisor's exit status.
    fn end(self, supervisor: ExitStatus) -> Result<(), Failure> {
        match supervisor.code() {
            Some(0) => Ok(()),
            Some(code) => Err(Failure::Command(u8::try_from(code).unwrap_or(u8::MAX))),
            None => {
                family::kill_all(|_, _| {})?;
                note(&format!("the command was killed, because its supervisor was: {supervisor}"));
                Err(Failure::Command(status_of_signal(Signal::KILL.as_raw())))
            }
        }
    }
}

/// Tells what is missing in `podlock hold sleep 1`.
pub(crate) fn hint(mut words: impl Iterator<Item = OsString>) {
    if words.any(|word| word == "hold") && !words.any(|word| word == "--") {
        note("the command stands after `--`: podlock hold [OPTIONS] -- COMMAND [ARGUMENTS]");
    }
}

/// The exit code that shells use for a process that a signal ended.
fn status_of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Bad usage keeps its exit code. Every other failure gets one that the command would not use.
fn not_started(failure: Failure) -> Failure {
    match failure {
        Failure::Usage(text) => Failure::Usage(text),
        other => {
            other.report();
            Failure::Command(NOT_STARTED)
        }
    }
}
