//! A pod's condition in one word, for people: a summary of its row, its two locks, its beats and the event log.
//!
//! No decision uses it. `studio_pod_status.condition` computes the same word in SQL; a test compares the two.

use serde::Serialize;

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
    /// It was put out.
    pub put_out: bool,
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
    /// It was put out, and is to be buried.
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
            Seen { put_out: true, .. } => Self::PutOut,
            Seen { alive: false, witness: false, draining: true, .. } => Self::Stopped,
            Seen { alive: false, witness: false, waits: true, .. } => Self::DeadWaiting,
            Seen { alive: false, witness: false, .. } => Self::Dead,
            Seen { alive: false, .. } => Self::Reconnecting,
            Seen { draining: true, .. } => Self::Draining,
            Seen { witness: false, .. } => Self::ControlLost,
            Seen { drain_requested: true, .. } => Self::DrainRequested,
            Seen { lags: true, .. } => Self::Lagging,
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
            Self::PutOut => "put out, to be buried",
            Self::Dead => "dead, to be buried",
            Self::DeadWaiting => "dead, waiting",
            Self::Gone => "gone",
        }
    }
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
            put_out: false,
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
            (Seen { put_out: true, ..fine }, Condition::PutOut),
            (dead, Condition::Dead),
            (Seen { waits: true, ..dead }, Condition::DeadWaiting),
            (Seen { draining: true, waits: true, ..dead }, Condition::Stopped),
            (Seen { draining: true, put_out: true, ..dead }, Condition::PutOut),
        ];
        for (seen, condition) in cases {
            assert_eq!(Condition::of(&seen), condition, "{seen:?}");
            assert_eq!(serde_json::to_value(condition).ok(), Some(condition.as_str().into()));
        }
    }
}
