//! What a service or its supervisor knows of the end of a process.

use crate::id::Incarnation;
use crate::protocol::cause::Exit;

/// How a process ended, as whoever watched it knows: for [`Pod::note_exit`](crate::Pod::note_exit) and
/// [`PodBuilder::former_exit`](crate::PodBuilder::former_exit).
///
/// ```
/// use podlock::history::ProcessExit;
/// let killed = ProcessExit::signal(9).out_of_memory();
/// let stopped = ProcessExit::code(143).was_asked();
/// # let _ = (killed, stopped);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct ProcessExit {
    pub(crate) exit: Exit,
    /// The incarnation that ended so. `None`: the newest of the name.
    pub(crate) of: Option<Incarnation>,
}

impl ProcessExit {
    /// It ended with this exit code. A code other than 0 is a failure, and the cause becomes `exited`.
    pub fn code(code: i32) -> Self {
        Self { exit: Exit { code: Some(code), ..Exit::default() }, of: None }
    }

    /// This signal ended it. The cause becomes `killed`.
    pub fn signal(signal: i32) -> Self {
        Self { exit: Exit { signal: Some(signal), ..Exit::default() }, of: None }
    }

    /// The kernel killed it for lack of memory. The cause becomes `out_of_memory`.
    pub fn out_of_memory(mut self) -> Self {
        self.exit.out_of_memory = true;
        self
    }

    /// It was this incarnation, for [`PodBuilder::former_exit`](crate::PodBuilder::former_exit). Without this, the newest
    /// incarnation of the name counts. That is a wrong one if the process ended before it registered.
    pub fn of(mut self, incarnation: Incarnation) -> Self {
        self.of = Some(incarnation);
        self
    }

    /// Somebody had asked it to stop. Then the exit code or the signal is recorded, and is no failure.
    pub fn was_asked(mut self) -> Self {
        self.exit.was_asked = true;
        self
    }
}

impl From<std::process::ExitStatus> for ProcessExit {
    fn from(status: std::process::ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        Self { exit: Exit { code: status.code(), signal: status.signal(), ..Exit::default() }, of: None }
    }
}
