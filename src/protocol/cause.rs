//! What was behind an incarnation's end, as `studio_pod_sessions.cause` keeps it. It is finer than the reason, and for
//! people.
//!
//! * **Authority.** The pod itself knows best. It writes its cause before it ends its sessions, or when its process
//!   registers again. It writes only for its own former incarnation. Its burier writes what the burier saw, unless the
//!   pod has written a cause. Whoever watched the process, or reads its cgroup when it starts again, may know more than
//!   the burier ([`of_exit`]).
//! * **Not promised.** A killed process writes nothing. From outside, a killed process looks like closed connections. A
//!   frozen process, a pod that is cut off and a lost host look like each other.

use std::time::Duration;

use serde::Serialize;

use super::ending::Reason;
use super::patience::Stated;

/// What was behind an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Said by the pod: its process was stopped (SIGSTOP, a suspended host) until after its deadline.
    Frozen,
    /// Said by the pod: until its deadline, the database did not answer it or could not be reached.
    CutOff,
    /// Said by the pod: its application's runtime ran no task for `stall_after`.
    RuntimeBlocked,
    /// Said by the pod: something ended its sessions while it lived.
    SessionsEnded,
    /// Said by the pod: its session was alive but no longer held the lock.
    LockLost,
    /// Said by the pod: its row was deleted while it held its lock.
    RowDeleted,
    /// Said by the pod: it met an error that it cannot repair, and ended.
    Failed,
    /// Said by the pod: its service dropped it without a shutdown.
    Dropped,
    /// Seen by the burier: the pod beat shortly before its lock came free, so its lease cannot have expired. Its
    /// process ended, or its connections were closed.
    Closed,
    /// Seen by the burier: the pod had not beaten for a lease, so its lease may have expired.
    Silent,
    /// Said by whoever watched the process: a signal killed it.
    Killed,
    /// Said by whoever watched the process: it ended with an exit code that is not 0.
    Exited,
    /// Said by whoever watched the process, or seen at the next start in the same cgroup: the kernel killed it for lack
    /// of memory.
    OutOfMemory,
    /// Nobody recorded the end. It was found later that the incarnation is not in the roster.
    Unrecorded,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Frozen,
        Self::CutOff,
        Self::RuntimeBlocked,
        Self::SessionsEnded,
        Self::LockLost,
        Self::RowDeleted,
        Self::Failed,
        Self::Dropped,
        Self::Closed,
        Self::Silent,
        Self::Killed,
        Self::Exited,
        Self::OutOfMemory,
        Self::Unrecorded,
    ];

    /// Its stable name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::CutOff => "cut_off",
            Self::RuntimeBlocked => "runtime_blocked",
            Self::SessionsEnded => "sessions_ended",
            Self::LockLost => "lock_lost",
            Self::RowDeleted => "row_deleted",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::Killed => "killed",
            Self::Exited => "exited",
            Self::OutOfMemory => "out_of_memory",
            Self::Unrecorded => "unrecorded",
        }
    }

    /// The cause with this name. `None`: this version does not know the name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == name)
    }

    /// In words, for people.
    #[must_use]
    pub const fn says(self) -> &'static str {
        match self {
            Self::Frozen => "its process was frozen past its deadline",
            Self::CutOff => "it was cut off from the database",
            Self::RuntimeBlocked => "its runtime was blocked",
            Self::SessionsEnded => "its sessions were ended from outside",
            Self::LockLost => "its session lost the lock",
            Self::RowDeleted => "its row was deleted",
            Self::Failed => "it failed and ended itself",
            Self::Dropped => "its service dropped it without a shutdown",
            Self::Closed => "its process ended, or its connections were closed",
            Self::Silent => "it was silent for a lease before",
            Self::Killed => "a signal killed its process",
            Self::Exited => "its process ended with an error",
            Self::OutOfMemory => "its process was killed for lack of memory",
            Self::Unrecorded => "nobody recorded its end",
        }
    }
}

/// How a process ended, as whoever watched it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code. `None`: a signal ended it, or the code is unknown.
    pub code: Option<i32>,
    /// The signal that ended it. `None`: none did, or it is unknown.
    pub signal: Option<i32>,
    /// The kernel killed it for lack of memory.
    pub out_of_memory: bool,
    /// Somebody had asked it to stop. Then an exit code or a signal is no failure.
    pub was_asked: bool,
}

/// The cause of an end that an exit shows. `None`: it shows none, because the process ended well or as it was asked to.
#[must_use]
pub const fn of_exit(exit: Exit) -> Option<Cause> {
    match exit {
        Exit { out_of_memory: true, .. } => Some(Cause::OutOfMemory),
        Exit { was_asked: true, .. } => None,
        Exit { signal: Some(_), .. } => Some(Cause::Killed),
        Exit { code: Some(0) | None, .. } => None,
        Exit { code: Some(_), .. } => Some(Cause::Exited),
    }
}

/// How a pod lost its liveness lock, as the pod itself saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The connection ended.
    Ended,
    /// The connection was up, but the server did not answer.
    Unanswered,
    /// The server answered that this session does not hold the lock.
    NotHeld,
    /// The pod's row is gone from the roster.
    RowGone,
    /// The application's runtime is blocked.
    RuntimeBlocked,
}

/// Why a pod lost its lock. `asleep` is how long its own process was stopped since the last answered ping. A process
/// that was stopped for more than half of `self_fence` was frozen, even if its sessions ended meanwhile.
#[must_use]
pub fn of_loss(loss: Loss, asleep: Duration, self_fence: Duration) -> Cause {
    match loss {
        Loss::RuntimeBlocked => Cause::RuntimeBlocked,
        Loss::RowGone | Loss::Ended | Loss::Unanswered if asleep > self_fence / 2 => Cause::Frozen,
        Loss::RowGone => Cause::RowDeleted,
        Loss::NotHeld => Cause::LockLost,
        Loss::Ended => Cause::SessionsEnded,
        Loss::Unanswered => Cause::CutOff,
    }
}

/// Why a pod that did not get its lock back by its deadline gives itself up. If its sessions ended or lost the lock,
/// the real cause is [`Cause::CutOff`]: it had time to open new sessions and could not reach the database.
#[must_use]
pub const fn past_the_deadline(cause: Cause) -> Cause {
    match cause {
        Cause::SessionsEnded | Cause::LockLost => Cause::CutOff,
        cause => cause,
    }
}

/// The times by which a burier judges a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CauseTiming {
    /// The lease.
    pub lease: Duration,
    /// How often a living pod pings.
    pub ping_interval: Duration,
    /// How often a pod beats while it makes progress.
    pub beat_interval: Duration,
}

impl CauseTiming {
    /// The times of a peer, as far as its row states them. A row does not state how often its pod pings. For a peer
    /// whose lease is not ours, we therefore do not know how soon the server could have ended its silent session. The
    /// ping interval is then taken to be the whole lease.
    #[must_use]
    pub fn of_peer(self, stated: Option<Stated>, beat_interval: Option<Duration>) -> Self {
        let beat_interval = beat_interval.unwrap_or(self.beat_interval);
        match stated {
            Some(Stated { lease, .. }) if lease.as_millis() != self.lease.as_millis() => {
                Self { lease, ping_interval: lease, beat_interval }
            }
            _ => Self { beat_interval, ..self },
        }
    }
}

/// The cause that a burier can see. `beat_age` is the age of the last beat when the lock was first seen free. `None`:
/// the age proves nothing, or the reason already says everything.
///
/// The server ends a session one lease after the last ping that it received. That ping came at most two ping intervals
/// before the process fell silent. A process that beat since then was not silent for a lease.
#[must_use]
pub fn seen(reason: Reason, beat_age: Option<Duration>, timing: &CauseTiming) -> Option<Cause> {
    let age = beat_age.filter(|_| reason == Reason::Lost)?;
    let lease_ends_after = timing.lease.saturating_sub(timing.ping_interval * 2);
    if age < lease_ends_after {
        Some(Cause::Closed)
    } else if age > timing.beat_interval * 11 / 10 {
        Some(Cause::Silent)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_a_name_of_its_own_and_what_is_unknown_is_none_of_them() {
        for cause in Cause::ALL {
            assert_eq!(Cause::parse(cause.as_str()), Some(cause));
            assert_eq!(serde_json::to_value(cause).ok(), Some(cause.as_str().into()));
        }
        assert_eq!(Cause::parse("meteorite"), None);
    }

    #[test]
    fn an_exit_is_a_failure_unless_it_was_asked_for_and_lack_of_memory_always_is() {
        let exit = |code, signal, out_of_memory, was_asked| of_exit(Exit { code, signal, out_of_memory, was_asked });
        assert_eq!(exit(Some(0), None, false, false), None);
        assert_eq!(exit(None, None, false, false), None, "nothing is known");
        assert_eq!(exit(Some(3), None, false, false), Some(Cause::Exited));
        assert_eq!(exit(None, Some(11), false, false), Some(Cause::Killed));
        assert_eq!(exit(Some(3), None, false, true), None);
        assert_eq!(exit(None, Some(15), false, true), None);
        for was_asked in [false, true] {
            assert_eq!(exit(None, Some(9), true, was_asked), Some(Cause::OutOfMemory));
        }
    }

    #[test]
    fn a_pod_that_slept_was_frozen_whatever_became_of_its_sessions() {
        let s = Duration::from_secs;
        let cases = [
            (Loss::Ended, 0, Cause::SessionsEnded),
            (Loss::Ended, 9, Cause::Frozen),
            (Loss::Ended, 3, Cause::SessionsEnded),
            (Loss::Unanswered, 0, Cause::CutOff),
            (Loss::Unanswered, 9, Cause::Frozen),
            (Loss::RowGone, 0, Cause::RowDeleted),
            (Loss::RowGone, 9, Cause::Frozen),
            (Loss::NotHeld, 0, Cause::LockLost),
            (Loss::RuntimeBlocked, 9, Cause::RuntimeBlocked),
        ];
        for (loss, asleep, cause) in cases {
            assert_eq!(of_loss(loss, s(asleep), s(8)), cause, "{loss:?}, asleep for {asleep} s");
        }
        assert_eq!(past_the_deadline(Cause::SessionsEnded), Cause::CutOff);
        assert_eq!(past_the_deadline(Cause::Frozen), Cause::Frozen);
    }

    #[test]
    fn a_pod_of_another_lease_is_judged_by_its_own_beats_and_not_called_closed() {
        let s = Duration::from_secs;
        let ours = CauseTiming { lease: s(2), ping_interval: Duration::from_millis(400), beat_interval: s(2) };
        let stated = |lease| Some(Stated { lease: s(lease), self_fence: s(lease) * 8 / 10 });
        let of_30 = ours.of_peer(stated(30), Some(s(30)));
        assert_eq!(seen(Reason::Lost, Some(s(3)), &of_30), None, "it beats every 30 s: 3 s without one are no silence");
        assert_eq!(seen(Reason::Lost, Some(s(1)), &of_30), None, "nor does a beat say how long ago it pinged");
        assert_eq!(seen(Reason::Lost, Some(s(40)), &of_30), Some(Cause::Silent));
        assert_eq!(ours.of_peer(stated(2), Some(s(2))), ours);
        assert_eq!(ours.of_peer(None, None), ours, "a row that says nothing");
    }

    #[test]
    fn a_beat_within_the_lease_shows_that_the_lease_did_not_end() {
        let s = Duration::from_secs;
        let timing = CauseTiming { lease: s(10), ping_interval: s(1), beat_interval: s(10) };
        let seen = |reason, age| seen(reason, age, &timing);
        assert_eq!(seen(Reason::Lost, Some(s(3))), Some(Cause::Closed));
        assert_eq!(seen(Reason::Lost, Some(s(9))), None, "it may have been silent, or between two beats");
        assert_eq!(seen(Reason::Lost, Some(s(15))), Some(Cause::Silent));
        assert_eq!(seen(Reason::Lost, None), None);
        for told in [Reason::Shutdown, Reason::Evicted, Reason::Stalled, Reason::Replaced, Reason::Detached] {
            assert_eq!(seen(told, Some(s(3))), None, "{told:?} says it all");
        }
    }
}
