//! Signals, counted from the moment that this is made: those that ask a process to end, and those that `hold` passes on.

use std::io;
use std::task::Poll;

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask a process to end.
#[derive(Debug)]
pub(crate) struct EndSignals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl EndSignals {
    /// From here on these signals do not end the process by themselves.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one and names it.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

/// What `hold` passes on to its command.
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

/// The signals that are passed on, but for those that this process was started to ignore (`nohup`): the command ignores
/// them too.
#[derive(Debug)]
pub(crate) struct Passed {
    passed: Vec<(Number, Signal)>,
    /// Also what makes exit codes of children known: where SIGCHLD is ignored, the kernel throws them away. Heard, it is so no
    /// more, neither here nor in what is started from here.
    children: Signal,
}

impl Passed {
    /// From here on these signals do not end or stop the process by themselves.
    pub(crate) fn listen() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        let heard = PASSED.into_iter().filter(|number| ignored >> (number.as_raw() - 1) & 1 == 0);
        let listen = |number: Number| Ok((number, signal(SignalKind::from_raw(number.as_raw()))?));
        Ok(Self { passed: heard.map(listen).collect::<io::Result<_>>()?, children: signal(SignalKind::child())? })
    }

    /// Waits for the next one; or for SIGCHLD, which is passed on to nobody: a child has ended or stopped.
    pub(crate) async fn next(&mut self) -> Number {
        std::future::poll_fn(|context| {
            if self.children.poll_recv(context).is_ready() {
                return Poll::Ready(Number::CHILD);
            }
            let mut signals = self.passed.iter_mut();
            let came = signals.find_map(|(number, signal)| signal.poll_recv(context).is_ready().then_some(*number));
            came.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}
