//! Walks through one kind of old rows in the order of their age, a batch at a time.
//!
//! The danger is a row that cannot be deleted. It is the oldest, so every batch would begin with it, and fail. A walk
//! therefore remembers its place. It reports a row that cannot be deleted, and begins the next batch after that row.
//! The next walk from the beginning tries the row again. If a batch does not end within a statement's time, the walk
//! tries a smaller one, down to a single row. Each batch that succeeds doubles the next.
//!
//! The log of events is only cut at its beginning, so that walk has no place to remember. The walk ends before the
//! first event that cannot be deleted, which becomes the snapshot.

use std::time::Duration;

use super::keep::{By, Retention};
use crate::error::{Error, ErrorKind, Result};
use crate::pg::pool::Database;
use crate::protocol::fold;
use crate::store::history::{self as statements, Handled, Place};

/// The most rows of a kind that one transaction deletes. Larger transactions hold their locks longer. Smaller ones need
/// more rounds.
const BATCH: usize = 200;
/// A snapshot replaces at least two events. Replacing one would not shorten the log.
const EVENTS_MIN: usize = 2;
/// The most chunks of streams that one transaction deletes. A run may have millions. Larger transactions hold their
/// locks longer and may run into the statement time-out. Smaller ones need more rounds.
const CHUNKS: i32 = 10_000;

/// The kind of rows in a walk.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Runs(&'static str),
    Events,
    Sessions,
}

/// A walk through the rows that are older than `keep`.
#[derive(Debug)]
pub(super) struct Walk {
    kind: Kind,
    keep: Duration,
    /// The last row that was handled. `None` at the beginning.
    after: Option<Place>,
    /// How many rows the next step tries.
    size: usize,
}

/// The result of one step.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) deleted: i64,
    /// Whether the walk has not reached its end.
    pub(super) more: bool,
    /// Whether another pruner was at work. This step deleted nothing then.
    pub(super) busy: bool,
    /// The rows that stay, and why.
    pub(super) kept: Vec<(String, String)>,
}

impl Walk {
    /// Makes a walk for each kind that is not kept for ever. Sessions come after runs, because a run keeps the sessions
    /// of its owners.
    pub(super) fn all_of(keep: &Retention) -> Vec<Self> {
        let runs =
            keep.runs_by_state().flat_map(|(states, keep)| states.iter().map(move |state| (Kind::Runs(state), keep)));
        let rest = keep.events_kept().into_iter().flat_map(|keep| [(Kind::Events, keep), (Kind::Sessions, keep)]);
        runs.chain(rest).map(|(kind, keep)| Self { kind, keep, after: None, size: BATCH }).collect()
    }

    /// `run`, `event` or `session`.
    pub(super) fn what(&self) -> &'static str {
        match self.kind {
            Kind::Runs(_) => "run",
            Kind::Events => "event",
            Kind::Sessions => "session",
        }
    }

    /// Deletes the next batch.
    pub(super) async fn step(&mut self, db: &Database, by: By<'_>) -> Result<Step> {
        match self.kind {
            Kind::Events => self.cut(db, by).await,
            Kind::Runs(_) | Kind::Sessions => self.delete(db).await,
        }
    }

    async fn delete(&mut self, db: &Database) -> Result<Step> {
        let most = i32::try_from(self.size).unwrap_or(i32::MAX);
        let places = match self.kind {
            Kind::Runs(state) => statements::old_runs(db, state, self.keep, self.after, most).await?,
            _ => statements::old_sessions(db, self.keep, self.after, most).await?,
        };
        // At the beginning the server is asked even if nothing is old. So an error about missing rights does not depend
        // on the age of rows.
        if places.is_empty() && self.after.take().is_some() {
            return Ok(Step::default());
        }
        let ids: Vec<_> = places.iter().map(|(_, id)| *id).collect();
        let done = match self.kind {
            Kind::Runs(_) => statements::prune_runs(db, &ids, self.keep, CHUNKS).await,
            _ => statements::prune_sessions(db, &ids, self.keep).await,
        };
        let Handled { gone, handled, kept } = match done {
            Ok(Some(done)) => done,
            Ok(None) => return Ok(Step { busy: true, ..Step::default() }),
            // The server rolled the whole batch back.
            Err(e) if took_too_long(&e) && ids.len() > 1 => {
                self.size = (ids.len() / 4).max(1);
                return Ok(Step { more: true, ..Step::default() });
            }
            Err(e) => match ids.as_slice() {
                [id] if took_too_long(&e) => Handled { gone: 0, handled: 1, kept: vec![(*id, e.to_string())] },
                _ => return Err(e),
            },
        };
        let is_full = ids.len() == self.size;
        let has_slack = handled == ids.len() && kept.is_empty();
        if has_slack {
            self.size = (self.size * 2).min(BATCH);
        }
        if let Some(last) = handled.min(places.len()).checked_sub(1) {
            self.after = Some(places[last]);
        }
        let more = is_full || handled < ids.len();
        if !more {
            self.after = None;
        }
        let kept = kept.into_iter().map(|(id, why)| (id.to_string(), why)).collect();
        Ok(Step { deleted: gone, more, busy: false, kept })
    }

    /// Loads the log's beginning, folds it into a snapshot, and replaces it.
    async fn cut(&mut self, db: &Database, by: By<'_>) -> Result<Step> {
        let most = i32::try_from(self.size + 1).unwrap_or(i32::MAX);
        let loaded = statements::oldest_events(db, self.keep, most).await?;
        // The old events up to the first one that is not old.
        let old: Vec<fold::LogEntry> =
            loaded.into_iter().map_while(|(entry, is_old)| is_old.then_some(entry)).collect();
        let [first, .., last] = old.as_slice() else { return Ok(Step::default()) };
        let snapshot = fold::snapshot(&old).map_err(|e| {
            Error::new(ErrorKind::SchemaIncompatible, format!("pruning events: {e}"))
                .state("no event was deleted")
                .help("see who else writes the log; a newer version of podlock may know the event")
                .caused_by(e)
        })?;
        match statements::prune_events(db, self.keep, first.idx, last.idx, &snapshot, by.pod).await {
            Ok(None) => Ok(Step { busy: true, ..Step::default() }),
            Ok(Some(gone)) => {
                let more = old.len() > self.size;
                self.size = (self.size * 2).min(BATCH);
                Ok(Step { deleted: i64::from(gone), more, ..Step::default() })
            }
            Err(e) if !(is_of_a_row(&e) || took_too_long(&e)) => Err(e),
            Err(_) if old.len() > EVENTS_MIN => {
                self.size = old.len() / 2;
                Ok(Step { more: true, ..Step::default() })
            }
            Err(e) => {
                self.size = BATCH;
                Ok(Step { kept: vec![(first.idx.to_string(), e.to_string())], ..Step::default() })
            }
        }
    }
}

/// The server ended the statement at its time-out.
fn took_too_long(error: &Error) -> bool {
    error.sqlstate() == Some("57014")
}

/// A constraint or a trigger of the service's own refused the row, or somebody holds a lock that the deletion needs.
fn is_of_a_row(error: &Error) -> bool {
    error.sqlstate().is_some_and(|code| code.starts_with("23") || code.starts_with("P0") || code == "55P03")
}
