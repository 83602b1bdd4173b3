//! Why an incarnation ended, as `studio_pod_sessions.reason` keeps it. Only some of these count as a crash of its runs.

/// How an incarnation's end is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It had begun its clean stop.
    Shutdown,
    /// It was buried without one.
    Lost,
    /// The next incarnation of its name took its place before anybody buried it.
    Replaced,
    /// It gave itself up (L7), and its process went on as the next incarnation.
    Detached,
}

impl Reason {
    /// Its stable name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Lost => "lost",
            Self::Replaced => "replaced",
            Self::Detached => "detached",
        }
    }
}

/// Why an incarnation ends that is buried.
#[must_use]
pub const fn buried(draining: bool) -> Reason {
    if draining { Reason::Shutdown } else { Reason::Lost }
}

/// Why an incarnation ends whose name registers anew; `gave_up`: by the process that had given it up.
#[must_use]
pub const fn replaced(draining: bool, gave_up: bool) -> Reason {
    match (draining, gave_up) {
        // A clean stop that was begun stays one, whatever became of the pod in the middle of it.
        (true, _) => Reason::Shutdown,
        (false, true) => Reason::Detached,
        (false, false) => Reason::Replaced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_an_incarnation_ended_follows_from_its_row_and_from_who_ends_it() {
        assert_eq!((buried(false).as_str(), buried(true).as_str()), ("lost", "shutdown"));
        let cases = [
            (false, false, "replaced"),
            (false, true, "detached"),
            (true, false, "shutdown"),
            (true, true, "shutdown"),
        ];
        for (draining, gave_up, reason) in cases {
            assert_eq!(replaced(draining, gave_up).as_str(), reason, "draining {draining}, gave up {gave_up}");
        }
    }
}
