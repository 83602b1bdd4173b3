//! Signals, counted from the moment at which a value of this module is made: those that ask a process to end, and those
//! that `hold` passes on.

use std::io;
use std::task::Poll;

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask a process to end, except a SIGINT or SIGHUP that this process was started to ignore. A shell
/// starts the background jobs of a script (`&`) with SIGINT ignored, and `nohup` starts its command with SIGHUP
/// ignored.
#[derive(Debug)]
pub(crate) struct EndSignals(Vec<(&'static str, Signal)>);

impl EndSignals {
    /// Starts to listen. From then on, these signals no longer end the process by themselves.
    pub(crate) fn listen() -> io::Result<Self> {
        let ignored = ignored()?;
        let mut signals = vec![("SIGTERM", signal(SignalKind::terminate())?)];
        for (name, number) in [("SIGINT", Number::INT), ("SIGHUP", Number::HUP)] {
            if !is_in(ignored, number) {
                signals.push((name, signal(SignalKind::from_raw(number.as_raw()))?));
            }
        }
        Ok(Self(signals))
    }

    /// Waits for the next signal and returns its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        next_of(&mut self.0).await
    }
}

/// Waits for the next of these signals.
async fn next_of<T: Copy>(signals: &mut [(T, Signal)]) -> T {
    std::future::poll_fn(|context| {
        let mut signals = signals.iter_mut();
        let came = signals.find_map(|(which, signal)| signal.poll_recv(context).is_ready().then_some(*which));
        came.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// The signals that this process ignores, as a mask: signal n is bit n - 1.
fn ignored() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    Ok(ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0))
}

fn is_in(mask: u64, number: Number) -> bool {
    mask >> (number.as_raw() - 1) & 1 == 1
}

/// The signals that `hold` passes on to its command.
const PASSED: [Number; 12] = [
    Number::HUP,
    Number::INT,
    Number::QUIT,
    Number::USR1,
    Number::USR2,
    Number::ALARM,
    Number::TERM,
    Number::CONT,
    Number::TSTP,
    Number::WINCH,
    Number::IO,
    Number::POWER,
];

/// The signals that are passed on, except those that this process was started to ignore (`nohup`): the command ignores
/// them too.
#[derive(Debug)]
pub(crate) struct Passed {
    passed: Vec<(Number, Signal)>,
    /// Listening for SIGCHLD also keeps the exit codes of children: while SIGCHLD is ignored, the kernel discards them.
    /// Processes that are started from here do not ignore SIGCHLD either.
    children: Signal,
}

impl Passed {
    /// Starts to listen. From then on, these signals no longer end or stop the process by themselves.
    pub(crate) fn listen() -> io::Result<Self> {
        let ignored = ignored()?;
        let heard = PASSED.into_iter().filter(|number| !is_in(ignored, *number));
        let listen = |number: Number| Ok((number, signal(SignalKind::from_raw(number.as_raw()))?));
        Ok(Self { passed: heard.map(listen).collect::<io::Result<_>>()?, children: signal(SignalKind::child())? })
    }

    /// Waits for the next signal. SIGCHLD is returned too, but not passed on: it means that a child has ended or
    /// stopped.
    pub(crate) async fn next(&mut self) -> Number {
        let Self { passed, children } = self;
        tokio::select! {
            biased;
            _ = children.recv() => Number::CHILD,
            number = next_of(passed) => number,
        }
    }
}
