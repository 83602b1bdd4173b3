//! How long rows are kept, and who prunes them.

use std::time::Duration;

use crate::config::{KEEP_MAX, KEEP_MIN, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::id::Incarnation;
use crate::protocol::state::RunState;

const SUCCEEDED: [&str; 2] = [RunState::Succeeded.as_str(), RunState::Cancelled.as_str()];
const FAILED: [&str; 2] = [RunState::Failed.as_str(), RunState::Quarantined.as_str()];

/// How long ended runs and old events are kept, by the server's clock. A kind that is not set is kept for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Retention {
    runs: Option<Duration>,
    failed_runs: Option<Duration>,
    events: Option<Duration>,
}

impl Retention {
    /// Keeps everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long to keep runs that have succeeded or were cancelled, with their attempts. At least an hour.
    pub fn runs(mut self, keep: Duration) -> Self {
        self.runs = Some(keep);
        self
    }

    /// How long to keep runs that have failed or were quarantined. At least an hour.
    pub fn failed_runs(mut self, keep: Duration) -> Self {
        self.failed_runs = Some(keep);
        self
    }

    /// How long to keep events, and incarnations that have ended. At least an hour.
    pub fn events(mut self, keep: Duration) -> Self {
        self.events = Some(keep);
        self
    }

    pub(super) fn of(settings: &Settings) -> Self {
        let keep = |time: Duration| Some(time).filter(|time| !time.is_zero());
        Self {
            runs: keep(settings.keep_runs),
            failed_runs: keep(settings.keep_failed_runs),
            events: keep(settings.keep_events),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let times = [("runs", self.runs), ("failed runs", self.failed_runs), ("events", self.events)];
        let bad =
            times.into_iter().find_map(|(what, keep)| Some((what, keep.filter(|k| *k < KEEP_MIN || *k > KEEP_MAX)?)));
        match bad {
            None => Ok(()),
            Some((what, keep)) => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{what} cannot be kept for {keep:?}: it must be from {KEEP_MIN:?} to {KEEP_MAX:?}"),
            )
            .state("nothing was deleted")
            .help("give a longer time")),
        }
    }

    pub(super) fn events_kept(&self) -> Option<Duration> {
        self.events
    }

    /// How long runs in these states are kept.
    pub(super) fn runs_by_state(&self) -> impl Iterator<Item = (&'static [&'static str], Duration)> {
        let groups = [(&SUCCEEDED[..], self.runs), (&FAILED[..], self.failed_runs)];
        groups.into_iter().filter_map(|(states, keep)| Some((states, keep?)))
    }
}

/// Who prunes. The snapshot event records it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct By<'a> {
    /// `None`: an operator. The name is that of its login role.
    pub(crate) pod: Option<(&'a str, Incarnation)>,
}
