//! Why an incarnation ended, as `studio_pod_sessions.reason` keeps it. Only some reasons count as a crash of its runs.

use super::names::named;

named! {
    /// Why an incarnation ended.
    pub enum Reason {
        /// It had begun its clean stop.
        Shutdown = "shutdown",
        /// It was buried without a clean stop.
        Lost = "lost",
        /// The next incarnation of its name took its place before anybody buried it.
        Replaced = "replaced",
        /// It gave itself up (L7), and its process went on as the next incarnation.
        Detached = "detached",
        /// A peer evicted it because it ran and made no progress.
        Stalled = "stalled",
        /// An operator evicted it.
        Evicted = "evicted",
    }
}

impl Reason {
    /// Whether the end counts as a crash of the runs that the incarnation owned. A clean stop, a detach, an eviction by
    /// an operator and an outage of the database say nothing about the runs.
    #[must_use]
    pub const fn is_crash(self) -> bool {
        match self {
            Self::Lost | Self::Stalled | Self::Replaced => true,
            Self::Shutdown | Self::Detached | Self::Evicted => false,
        }
    }

    /// Whether somebody evicted the incarnation. The reason is then the mark in its row: `studio_pods.evicted`.
    #[must_use]
    pub const fn is_eviction(self) -> bool {
        match self {
            Self::Stalled | Self::Evicted => true,
            Self::Shutdown | Self::Lost | Self::Replaced | Self::Detached => false,
        }
    }

    /// The reasons that are marks.
    pub fn evictions() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|reason| reason.is_eviction())
    }

    /// Why an incarnation was evicted, from the mark in its row. `None`: a newer version wrote the mark, and this
    /// version ignores it.
    #[must_use]
    pub fn of_eviction(mark: &str) -> Option<Self> {
        Self::parse(mark).filter(|reason| reason.is_eviction())
    }
}

/// Why a buried incarnation ended. An eviction is the reason even if the pod was draining.
#[must_use]
pub const fn buried(draining: bool, evicted: Option<Reason>) -> Reason {
    match evicted {
        Some(reason) => reason,
        None if draining => Reason::Shutdown,
        None => Reason::Lost,
    }
}

/// Why an incarnation ended whose name registers again. `gave_up`: the process that registers is the one that gave the
/// incarnation up.
#[must_use]
pub const fn replaced(draining: bool, gave_up: bool, evicted: Option<Reason>) -> Reason {
    match (evicted, draining, gave_up) {
        (Some(reason), _, _) => reason,
        // A clean stop that has begun stays a clean stop, whatever happened to the pod before it was done.
        (None, true, _) => Reason::Shutdown,
        (None, false, true) => Reason::Detached,
        (None, false, false) => Reason::Replaced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_an_incarnation_ended_follows_from_its_row_and_from_who_ends_it() {
        assert_eq!((buried(false, None).as_str(), buried(true, None).as_str()), ("lost", "shutdown"));
        for evicted in Reason::evictions() {
            assert_eq!(Reason::of_eviction(evicted.as_str()), Some(evicted));
            for (draining, gave_up) in [(false, false), (false, true), (true, false), (true, true)] {
                assert_eq!(buried(draining, Some(evicted)), evicted);
                assert_eq!(replaced(draining, gave_up, Some(evicted)), evicted);
            }
        }
        for no_mark in ["lost", "of a newer version", ""] {
            assert_eq!(Reason::of_eviction(no_mark), None, "{no_mark:?}");
        }
        let cases = [
            (false, false, "replaced"),
            (false, true, "detached"),
            (true, false, "shutdown"),
            (true, true, "shutdown"),
        ];
        for (draining, gave_up, reason) in cases {
            assert_eq!(replaced(draining, gave_up, None).as_str(), reason, "draining {draining}, gave up {gave_up}");
        }
    }
}
