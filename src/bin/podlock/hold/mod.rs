//! `podlock hold`: a pod's lock around a command that links nothing of podlock.
//!
//! Three processes: podlock, which holds the pod; its supervisor, which alone deals with the command; the command. What
//! each does when another one dies or freezes stands in [`supervisor`].

mod family;
mod link;
mod rule;
mod supervisor;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use podlock::{Config, Incarnation, OnDetach, Pod, PodId};
use rustix::process::{Pid, Signal, getpid, kill_process};
use tokio::process::{Child, Command};

use crate::failure::{Failure, note, note_error};
use crate::global::Global;
use crate::pod::logs::LogArgs;
use crate::pod::{label, lease};
use crate::signals::Passed;

use link::{Orders, Word, now};
use rule::Limits;

pub(crate) use supervisor::{ExecArgs, SupervisorArgs, exec, run as supervise};

/// Ownership was lost, and the command was stopped for it.
const LOST: u8 = 124;
/// The command was not started: the name is taken, the database cannot be reached, ...
const NOT_STARTED: u8 = 125;
/// There is such a program, and it cannot be run.
const NOT_RUN: u8 = 126;
/// There is no such program.
const NOT_FOUND: u8 = 127;

/// How long it may take to say that the end is a clean one.
const FAREWELL: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The command finds the pod's name and incarnation in PODLOCK_POD and PODLOCK_INCARNATION. Signals are passed on to it. It
is stopped (SIGTERM, then SIGKILL) when ownership is lost, before the server can give the name to another where that is
possible, and by `podlock drain`. Neither it nor what it starts outlives podlock.

Exit codes: the command's; 128+n where signal n ended it; 124 ownership was lost and the command was stopped for it;
125 podlock failed and the command was not started: the name is taken, the database cannot be reached; 126 the command
cannot be run; 127 it is not found; 2 bad usage.")]
pub(crate) struct Args {
    /// The pod's name [env: POD_NAME] [default: a random one, but not where PODLOCK_ENV=production]
    #[arg(long)]
    name: Option<PodId>,
    /// From SIGTERM to SIGKILL, where podlock stops the command; less where the lease leaves less
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
    // The command's own stderr: podlock speaks up where something is amiss.
    args.logs.start("warn")?;
    let mut signals = Passed::listen()?;
    // No signal tells of children that ended before somebody listened.
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
                // There is nobody yet whom the others could mean.
                _ => {}
            },
        }
    };
    let outcome = hold(&pod, &args, &mut signals).await;
    let name = pod.pod_id().clone();
    // The command is dead: the name may go. That this could not be recorded as clean is not the command's failure.
    if let Err(error) = pod.shutdown(FAREWELL).await {
        note_error(&format!("pod {name}"), &error);
    }
    outcome
}

impl Args {
    /// The environment's settings, with the command line's on top.
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

/// Runs the command under the pod's present incarnation, until nothing of it is left.
async fn hold(pod: &Pod, args: &Args, signals: &mut Passed) -> Result<(), Failure> {
    let incarnation = pod.incarnation();
    let mut held = Held::start(pod, incarnation, args).map_err(|e| not_started(e.into()))?;
    let mut ticks = tokio::time::interval(pod.settings().hold_probe_interval);
    let (mut lost, mut draining) = (false, false);
    let status = loop {
        tokio::select! {
            status = held.supervisor.wait() => break status?,
            _ = ticks.tick() => if !lost { held.say(Word::Answered(answered(pod))) },
            signal = signals.next() => {
                if signal == Signal::CHILD {
                    family::reap_others(held.pid())?;
                    continue;
                }
                held.say(Word::Signal(signal.as_raw()));
                if signal == Signal::TSTP {
                    stop_self();
                }
            }
            () = pod.over(incarnation), if !lost => {
                lost = true;
                let why = pod.failure().unwrap_or("it was silent for too long, put out or buried");
                note(&format!("pod {} ({incarnation}) is over: {why}; stopping the command", pod.pod_id()));
                held.say(Word::Lost);
            }
            () = pod.drain_requested(), if !draining => {
                draining = true;
                held.say(Word::Drain);
            }
        }
    };
    held.end(status)
}

/// When the last answered ping was sent. The clock is read first: never later than it was.
fn answered(pod: &Pod) -> Duration {
    let now = now();
    now.saturating_sub(pod.silent_for())
}

/// Ctrl-Z: the shell that waits for us takes the terminal back. The supervisor goes on, and keeps the deadline.
fn stop_self() {
    let _ = kill_process(getpid(), Signal::STOP);
}

struct Held {
    supervisor: Child,
    /// `None` once the supervisor does not read: then the end of the line is the last word.
    line: Option<OwnedFd>,
}

impl Held {
    fn start(pod: &Pod, incarnation: Incarnation, args: &Args) -> io::Result<Self> {
        // Should the supervisor be killed, what it leaves behind comes to us.
        family::adopt_orphans()?;
        let settings = pod.settings();
        let limits = Limits {
            self_fence: (settings.on_detach == OnDetach::Cancel).then_some(settings.self_fence),
            last: settings.lease.mul_f64(0.95),
            grace: args.grace,
        };
        let (line, theirs) = link::pair()?;
        Orders { limits, answered: answered(pod) }.send(&line, io::stdin())?;
        // Also where the program's file was replaced since we began.
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
            // One that has ended is waited for already. One that is stopped finds what it missed in the next word; but
            // what is said once must not be missed.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if matches!(word, Word::Lost | Word::Drain) {
                    self.line = None;
                }
            }
            _ => {}
        }
    }

    /// What became of the command.
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

/// Says what is missing in `podlock hold sleep 1`.
pub(crate) fn hint(mut words: impl Iterator<Item = OsString>) {
    if words.any(|word| word == "hold") && !words.any(|word| word == "--") {
        note("the command stands after `--`: podlock hold [OPTIONS] -- COMMAND [ARGUMENTS]");
    }
}

/// As shells have it.
fn status_of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Bad usage stays what it is; everything else is told apart from what the command could have ended with.
fn not_started(failure: Failure) -> Failure {
    match failure {
        Failure::Usage(text) => Failure::Usage(text),
        other => {
            other.report();
            Failure::Command(NOT_STARTED)
        }
    }
}
