//! When a held command must stop. The rules are pure; their moments are readings of one clock of the host.

use std::time::Duration;

/// The times that the rules depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// How long the pod may be silent before the command is told to stop (L7). `None` with `on_detach = continue`.
    pub(super) self_fence: Option<Duration>,
    /// How long the pod may be silent before every process of the command must be dead. It is shorter than the lease,
    /// after which the server may free the lock.
    pub(super) last: Duration,
    /// The time from SIGTERM to SIGKILL.
    pub(super) grace: Duration,
}

/// When and why the command was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) at: Duration,
    /// True: the pod's ownership is lost. False: the pod drains.
    pub(super) lost: bool,
}

impl Limits {
    /// When the command is told to stop, unless the server answers again. `answered` is the moment at which the last
    /// answered ping was sent.
    pub(super) fn term_at(&self, answered: Duration) -> Option<Duration> {
        Some(answered.saturating_add(self.self_fence?))
    }

    /// When a command that was told to stop is killed.
    pub(super) fn kill_at(&self, told: Told, answered: Duration) -> Duration {
        let patient = told.at.saturating_add(self.grace);
        match self.self_fence {
            Some(_) => patient.min(answered.saturating_add(self.last)),
            None => patient,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const LIMITS: Limits = Limits { self_fence: Some(s(80)), last: s(95), grace: s(20) };

    #[test]
    fn l7_the_command_is_told_to_stop_when_the_pod_was_silent_for_self_fence() {
        assert_eq!(LIMITS.term_at(s(1000)), Some(s(1080)));
    }

    #[test]
    fn l7_grace_ends_before_the_server_can_free_the_lock() {
        let told = |at, lost| Told { at: s(at), lost };
        assert_eq!(LIMITS.kill_at(told(1080, true), s(1000)), s(1095), "15 of its 20 are left");
        assert_eq!(LIMITS.kill_at(told(1010, true), s(1000)), s(1030));
        assert_eq!(LIMITS.kill_at(told(1010, false), s(1000)), s(1030), "a drain gives no more");
        assert_eq!(LIMITS.kill_at(told(1200, true), s(1000)), s(1095), "found out too late: at once");
    }

    #[test]
    fn with_on_detach_continue_silence_alone_stops_nothing() {
        let limits = Limits { self_fence: None, ..LIMITS };
        assert_eq!(limits.term_at(s(1000)), None);
        assert_eq!(limits.kill_at(Told { at: s(5000), lost: true }, s(1000)), s(5020));
    }
}
