//! Deleting what need not be kept any more, in rounds of small transactions.
//!
//! A round deletes at most a batch of each kind. Rounds of different pods do not wait for one another: who comes second
//! goes without. Nothing here holds a lock that a claim, an end of a run, a burial or an event could wait for. How old
//! something is, the server's clock says: it decides on nothing but this.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::config::{KEEP_MAX, KEEP_MIN, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::id::Incarnation;
use crate::pod::shared::Shared;
use crate::postgres::history as statements;
use crate::postgres::pool::Database;
use crate::protocol::fold;

/// The most rows of a kind that one transaction deletes.
const BATCH: i32 = 200;
/// Between two rounds of a pod, where the first left something.
const PACE: Duration = Duration::from_secs(1);
/// Between two tries of an operator while a pod prunes.
const AGAIN: Duration = Duration::from_millis(50);
/// How many rounds in a row an operator finds another at it.
const BUSY_ROUNDS: u32 = 200;

const SUCCEEDED: [&str; 2] = ["succeeded", "cancelled"];
const FAILED: [&str; 2] = ["failed", "quarantined"];

/// For how long what has ended is kept, by the server's clock; what is not set is kept for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Retention {
    runs: Option<Duration>,
    failed_runs: Option<Duration>,
    events: Option<Duration>,
}

impl Retention {
    /// Everything is kept.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs that have succeeded or were cancelled, with their attempts. At least an hour.
    pub fn runs(mut self, keep: Duration) -> Self {
        self.runs = Some(keep);
        self
    }

    /// The same of runs that have failed or were quarantined.
    pub fn failed_runs(mut self, keep: Duration) -> Self {
        self.failed_runs = Some(keep);
        self
    }

    /// The same of events, and of incarnations that have ended.
    pub fn events(mut self, keep: Duration) -> Self {
        self.events = Some(keep);
        self
    }

    fn of(settings: &Settings) -> Self {
        let keep = |time: Duration| Some(time).filter(|time| !time.is_zero());
        Self {
            runs: keep(settings.keep_runs),
            failed_runs: keep(settings.keep_failed_runs),
            events: keep(settings.keep_events),
        }
    }

    fn check(&self) -> Result<()> {
        let times = [("runs", self.runs), ("failed runs", self.failed_runs), ("events", self.events)];
        let bad =
            times.into_iter().find_map(|(what, keep)| Some((what, keep.filter(|k| *k < KEEP_MIN || *k > KEEP_MAX)?)));
        match bad {
            None => Ok(()),
            Some((what, keep)) => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{what} cannot be kept for {keep:?}: it must be from {KEEP_MIN:?} to {KEEP_MAX:?}"),
            )
            .left("nothing was deleted")
            .todo("give a longer time")),
        }
    }

    fn runs_by_state(&self) -> impl Iterator<Item = (&'static [&'static str], Duration)> {
        let groups = [(&SUCCEEDED[..], self.runs), (&FAILED[..], self.failed_runs)];
        groups.into_iter().filter_map(|(states, keep)| Some((states, keep?)))
    }
}

/// What was deleted, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pruned {
    /// Runs, with their attempts and streams.
    pub runs: i64,
    /// Events; one, a snapshot, stays in their place.
    pub events: i64,
    /// Incarnations that had ended.
    pub sessions: i64,
}

impl Pruned {
    fn in_words(self) -> String {
        format!("{} runs, {} events and {} sessions were deleted", self.runs, self.events, self.sessions)
    }
}

/// Who prunes, as the snapshot bears it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct By<'a> {
    /// `None`: an operator, under the name that it logged in with.
    pub(crate) pod: Option<(&'a str, Incarnation)>,
}

/// What one round did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Round {
    pruned: Pruned,
    /// A batch was full: there may be more.
    more: bool,
    /// Another was at it: something was left that need not be.
    busy: bool,
}

impl Round {
    fn note(&mut self, deleted: Option<i32>) -> i64 {
        self.busy |= deleted.is_none();
        self.more |= deleted.is_some_and(|n| n >= BATCH);
        deleted.map_or(0, i64::from)
    }
}

/// Prunes while the pod lives.
pub(crate) async fn run(shared: Arc<Shared>) {
    let keep = Retention::of(&shared.settings);
    if keep == Retention::new() {
        return;
    }
    let interval = shared.settings.prune_interval;
    let mut due = interval.mul_f64(0.5 + fastrand::f64());
    loop {
        tokio::select! {
            biased;
            () = shared.root.cancelled() => return,
            () = tokio::time::sleep(due) => {}
        }
        due = interval.mul_f64(0.5 + fastrand::f64());
        let Ok(incarnation) = shared.may_take_work() else { continue };
        let by = By { pod: Some((shared.pod_id.as_str(), incarnation)) };
        let done = tokio::select! {
            biased;
            () = shared.root.cancelled() => return,
            done = round(&shared.db, by, &keep) => done,
        };
        match done {
            Ok(Round { pruned, more, .. }) => {
                if more {
                    due = due.min(PACE);
                }
                if pruned != Pruned::default() {
                    tracing::info!(
                        target: "podlock", event = "pruned", pod = %shared.pod_id, runs = pruned.runs,
                        events = pruned.events, sessions = pruned.sessions, "deleted what need not be kept any more"
                    );
                }
            }
            Err(e) if !e.is_transient() => {
                tracing::warn!(target: "podlock", event = "prune_failed", pod = %shared.pod_id, error = %e, "nothing more was pruned; the next round comes");
            }
            Err(e) => {
                tracing::debug!(target: "podlock", event = "prune_failed", pod = %shared.pod_id, error = %e, "nothing more was pruned; the next round comes");
            }
        }
    }
}

/// Prunes until nothing is left that need not be kept.
pub(crate) async fn all(db: &Database, by: By<'_>, keep: &Retention) -> Result<Pruned> {
    keep.check()?;
    let mut total = Pruned::default();
    let mut busy_rounds = 0;
    loop {
        let Round { pruned, more, busy } = round(db, by, keep).await.map_err(|e| {
            let left = total.in_words();
            if e.may_have_been_done() {
                e.left(format!("{left}; of the last batch nothing is known"))
            } else {
                e.left(left)
            }
        })?;
        total.runs += pruned.runs;
        total.events += pruned.events;
        total.sessions += pruned.sessions;
        if busy {
            busy_rounds += 1;
            if busy_rounds >= BUSY_ROUNDS {
                return Err(Error::new(ErrorKind::Timeout, "pruning: another was always at it")
                    .left(total.in_words())
                    .todo("prune again later; the pods do it too"));
            }
            tokio::time::sleep(AGAIN).await;
        } else if !more {
            return Ok(total);
        } else {
            busy_rounds = 0;
        }
    }
}

/// How much [`all`] would delete now.
pub(crate) async fn count(db: &Database, keep: &Retention) -> Result<Pruned> {
    keep.check()?;
    let mut found = Pruned::default();
    for (states, keep) in keep.runs_by_state() {
        found.runs += statements::count_runs(db, states, keep).await?;
    }
    if let Some(keep) = keep.events {
        (found.events, found.sessions) = statements::count_events(db, keep).await?;
    }
    Ok(found)
}

async fn round(db: &Database, by: By<'_>, keep: &Retention) -> Result<Round> {
    let mut round = Round::default();
    for (states, keep) in keep.runs_by_state() {
        let deleted = statements::prune_runs(db, states, keep, BATCH).await?;
        round.more |= deleted.is_some_and(|(_, more)| more);
        round.pruned.runs += round.note(deleted.map(|(runs, _)| runs));
    }
    if let Some(keep) = keep.events {
        let deleted = events(db, by, keep).await?;
        round.pruned.events = round.note(deleted);
        // After the runs, which keep the sessions of their owners.
        let deleted = statements::prune_sessions(db, keep, BATCH).await?;
        round.pruned.sessions = round.note(deleted);
    }
    Ok(round)
}

/// Load, fold, replace.
async fn events(db: &Database, by: By<'_>, keep: Duration) -> Result<Option<i32>> {
    let loaded = statements::oldest_events(db, keep, BATCH + 1).await?;
    // What is old enough up to the first that is not: a log is cut at its beginning alone.
    let old: Vec<fold::Entry> = loaded.into_iter().map_while(|(entry, is_old)| is_old.then_some(entry)).collect();
    let [first, .., last] = old.as_slice() else { return Ok(Some(0)) };
    let snapshot = fold::snapshot(&old).map_err(|e| {
        Error::new(ErrorKind::SchemaIncompatible, format!("pruning events: {e}"))
            .left("no event was deleted")
            .todo("see who else writes the log; a newer version of podlock may know the event")
            .caused_by(e)
    })?;
    statements::prune_events(db, keep, first.idx, last.idx, &snapshot, by.pod).await
}
