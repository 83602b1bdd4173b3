//! A pod's condition in one word, for people: a summary of its row, its two locks, its beats and the event log.
//!
//! No decision uses it. `studio_pod_status.condition` computes the same word in SQL; a test compares the two.

use serde::Serialize;

use super::wait::WaitReason;

/// What can be seen of a pod of the roster from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its liveness lock is held by the backend that its row names.
    pub alive: bool,
    /// Its witness lock is held by the backend that its row names.
    pub witness: bool,
    /// It has begun its clean stop.
    pub draining: bool,
    /// Somebody asked it to drain.
    pub drain_requested: bool,
    /// Somebody cordoned it.
    pub cordoned: bool,
    /// It was evicted.
    pub evicted: bool,
    /// Its event index has not changed for two of its beat intervals.
    pub lags: bool,
    /// The event log says that its burial waits.
    pub waits: bool,
}

/// The condition of a pod of the roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Condition {
    /// Both of its locks are held, and its beats go on.
    Fine,
    /// It lives, and is opening its control session again.
    ControlLost,
    /// Its connection broke while its process lives. Its peers wait for `reconnect_grace` before they bury it.
    Reconnecting,
    /// Somebody asked it to drain, and its service has not begun to.
    DrainRequested,
    /// It stops cleanly.
    Draining,
    /// It stopped cleanly, and will be buried.
    Stopped,
    /// It holds its locks but its beats have stopped: it is frozen, or it makes no progress.
    Lagging,
    /// Somebody cordoned it: it keeps its runs and gets no new ones.
    Cordoned,
    /// It was evicted, and will be buried. The name is that of `studio_pod_status.condition`, `put_out`.
    PutOut,
    /// Both of its locks are free. It will be buried.
    Dead,
    /// Both of its locks are free, and its peers wait: many pods were lost at once, or no pod may bury yet.
    DeadWaiting,
    /// It is not in the roster any more.
    Gone,
}

impl Condition {
    /// The condition of a pod of the roster.
    #[must_use]
    pub const fn of(seen: &Seen) -> Self {
        match *seen {
            Seen { evicted: true, .. } => Self::PutOut,
            Seen { alive: false, witness: false, draining: true, .. } => Self::Stopped,
            Seen { alive: false, witness: false, waits: true, .. } => Self::DeadWaiting,
            Seen { alive: false, witness: false, .. } => Self::Dead,
            Seen { alive: false, .. } => Self::Reconnecting,
            Seen { draining: true, .. } => Self::Draining,
            Seen { witness: false, .. } => Self::ControlLost,
            Seen { drain_requested: true, .. } => Self::DrainRequested,
            Seen { lags: true, .. } => Self::Lagging,
            Seen { cordoned: true, .. } => Self::Cordoned,
            _ => Self::Fine,
        }
    }

    /// Its stable name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::ControlLost => "control_lost",
            Self::Reconnecting => "reconnecting",
            Self::DrainRequested => "drain_requested",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Lagging => "lagging",
            Self::Cordoned => "cordoned",
            Self::PutOut => "put_out",
            Self::Dead => "dead",
            Self::DeadWaiting => "dead_waiting",
            Self::Gone => "gone",
        }
    }

    /// In words, for people.
    #[must_use]
    pub const fn says(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::ControlLost => "fine, opening its control session again",
            Self::Reconnecting => "reconnecting",
            Self::DrainRequested => "asked to drain",
            Self::Draining => "draining",
            Self::Stopped => "stopped, to be buried",
            Self::Lagging => "frozen? no beat",
            Self::Cordoned => "cordoned",
            Self::PutOut => "evicted, to be buried",
            Self::Dead => "dead, to be buried",
            Self::DeadWaiting => "dead, waiting",
            Self::Gone => "gone",
        }
    }

    /// The words while a stranger holds the pod's liveness lock. No pod can bury the pod then, so the words promise no
    /// burial.
    #[must_use]
    pub const fn says_while_a_stranger_holds_its_lock(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::PutOut => "evicted",
            Self::Dead | Self::DeadWaiting => "dead",
            other => other.says(),
        }
    }
}

/// Strangers at a pod's locks: backends and prepared transactions that belong to no pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// A session holds the liveness lock.
    Holds,
    /// A prepared transaction holds the liveness lock.
    HoldsPrepared,
    /// Anything else: the stranger waits for a lock, or it is at the witness lock.
    IsThere,
}

impl Stranger {
    /// Reads the column `foreign_lock` of `studio_pod_status`. `None`: it names no stranger. Its parts are separated by
    /// `; `, and strangers that hold a lock come first.
    #[must_use]
    pub fn of(foreign_lock: Option<&str>) -> Option<Self> {
        let holds = |part: &&str| part.ends_with(" holds its liveness lock");
        let holder = foreign_lock?.split("; ").find(holds);
        Some(match holder {
            Some(part) if part.starts_with("prepared transaction ") => Self::HoldsPrepared,
            Some(_) => Self::Holds,
            None => Self::IsThere,
        })
    }

    /// In words, for people: what the stranger does, and how to end it if the pod cannot go on before that.
    #[must_use]
    pub const fn says(self) -> &'static str {
        match self {
            Self::Holds => "a stranger holds its lock: end that session",
            Self::HoldsPrepared => "a stranger holds its lock: roll back that prepared transaction",
            Self::IsThere => "a stranger at its lock",
        }
    }
}

/// A pod's condition in words: `dead, waiting: many lost, 7 s left`. The reason is given only for a pod whose burial
/// waits. A wait that is over has no time left to show: the next probe ends it, or no pod is there to probe.
#[must_use]
pub fn in_words(
    condition: Condition,
    wait_reason: Option<&str>,
    wait_left_ms: Option<i64>,
    foreign_lock: Option<&str>,
) -> String {
    let stranger = Stranger::of(foreign_lock);
    let after = stranger.map_or(String::new(), |stranger| format!("; {}", stranger.says()));
    let holds = matches!(stranger, Some(Stranger::Holds | Stranger::HoldsPrepared));
    let reason = match condition {
        Condition::DeadWaiting if holds => None,
        Condition::DeadWaiting | Condition::Reconnecting => wait_reason,
        _ => None,
    };
    let says = if holds { condition.says_while_a_stranger_holds_its_lock() } else { condition.says() };
    let Some(reason) = reason else { return format!("{says}{after}") };
    let reason = match WaitReason::parse(reason) {
        Some(known) => known.says(),
        None => reason,
    };
    let left = wait_left_ms.filter(|ms| *ms > 0);
    let left = left.map_or(String::new(), |ms| format!(", {} s left", (ms + 999) / 1000));
    format!("{says}: {reason}{left}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_readme_follow_from_what_is_seen() {
        let fine = Seen {
            alive: true,
            witness: true,
            draining: false,
            drain_requested: false,
            cordoned: false,
            evicted: false,
            lags: false,
            waits: false,
        };
        let dead = Seen { alive: false, witness: false, lags: true, ..fine };
        let cases = [
            (fine, Condition::Fine),
            (Seen { witness: false, ..fine }, Condition::ControlLost),
            (Seen { alive: false, ..fine }, Condition::Reconnecting),
            (Seen { alive: false, waits: true, ..fine }, Condition::Reconnecting),
            (Seen { drain_requested: true, ..fine }, Condition::DrainRequested),
            (Seen { drain_requested: true, draining: true, ..fine }, Condition::Draining),
            (Seen { lags: true, ..fine }, Condition::Lagging),
            (Seen { cordoned: true, ..fine }, Condition::Cordoned),
            (Seen { cordoned: true, lags: true, ..fine }, Condition::Lagging),
            (Seen { cordoned: true, draining: true, ..fine }, Condition::Draining),
            (Seen { evicted: true, ..fine }, Condition::PutOut),
            (dead, Condition::Dead),
            (Seen { waits: true, ..dead }, Condition::DeadWaiting),
            (Seen { draining: true, waits: true, ..dead }, Condition::Stopped),
            (Seen { draining: true, evicted: true, ..dead }, Condition::PutOut),
        ];
        for (seen, condition) in cases {
            assert_eq!(Condition::of(&seen), condition, "{seen:?}");
            assert_eq!(serde_json::to_value(condition).ok(), Some(condition.as_str().into()));
        }
    }

    #[test]
    fn a_wait_says_how_long_it_takes_only_while_time_is_left() {
        let words = |condition, left| in_words(condition, Some("unsettled"), left, None);
        assert_eq!(words(Condition::DeadWaiting, Some(6001)), "dead, waiting: no pod has been up for settle, 7 s left");
        assert_eq!(words(Condition::DeadWaiting, Some(0)), "dead, waiting: no pod has been up for settle");
        assert_eq!(words(Condition::Reconnecting, None), "reconnecting: no pod has been up for settle");
        assert_eq!(words(Condition::Dead, Some(6001)), "dead, to be buried", "it is not waited for");
    }

    #[test]
    fn no_burial_is_promised_while_a_stranger_holds_the_liveness_lock() {
        let session = "server process 7 (role r, application psql, from a local socket)";
        let words = |condition, does: &str| in_words(condition, Some("many_lost"), Some(1000), Some(does));
        let holds = format!("{session} holds its liveness lock");
        for (condition, says) in [
            (Condition::Dead, "dead"),
            (Condition::DeadWaiting, "dead"),
            (Condition::Stopped, "stopped"),
            (Condition::PutOut, "evicted"),
            (Condition::Reconnecting, "reconnecting: many lost, 1 s left"),
        ] {
            let expected = format!("{says}; a stranger holds its lock: end that session");
            assert_eq!(words(condition, &holds), expected);
            assert_eq!(words(condition, &format!("{holds}; {session} holds its witness lock")), expected);
        }
        let waits = format!("{session} waits for its liveness lock");
        assert_eq!(words(Condition::Fine, &waits), "fine; a stranger at its lock");
        assert_eq!(words(Condition::Dead, &waits), "dead, to be buried; a stranger at its lock");
        let prepared = "prepared transaction 'x' of role r holds its liveness lock";
        assert_eq!(
            words(Condition::Dead, prepared),
            "dead; a stranger holds its lock: roll back that prepared transaction"
        );
    }
}
