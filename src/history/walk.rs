//! One kind of what is pruned, walked through in the order of its age, a batch at a time.
//!
//! The danger is a row that cannot be deleted: it is the oldest, so every batch would begin with it, and fail with
//! it. A walk therefore remembers its place. It names a row that cannot be deleted, and begins the next batch after
//! that row. The row is tried again in the next walk from the beginning. If a batch does not fit into the time of a
//! statement, the walk tries a smaller one, down to a single row. Each batch that succeeds doubles the next.
//!
//! The log of events is only cut at its beginning, so that walk has no place to remember. The walk ends before the
//! first event that cannot be deleted, which becomes the snapshot.

use std::time::Duration;

use super::keep::{By, Retention};
use crate::error::{Error, ErrorKind, Result};
use crate::pg::pool::Database;
use crate::protocol::fold;
use crate::store::history::{self as statements, Handled, Place};

/// The most rows of a kind that one transaction deletes.
const BATCH: usize = 200;
/// A snapshot takes the place of two events at least.
const EVENTS_MIN: usize = 2;
/// The most chunks of streams that one transaction deletes.
const CHUNKS: i32 = 10_000;

/// What a walk goes through.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Runs(&'static str),
    Events,
    Sessions,
}

/// A walk through what is older than `keep`.
#[derive(Debug)]
pub(super) struct Walk {
    kind: Kind,
    keep: Duration,
    /// The last row that was handled; `None` at the beginning.
    after: Option<Place>,
    /// How many rows to try at once.
    size: usize,
}

/// What one step did.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) deleted: i64,
    /// The walk is not at its end.
    pub(super) more: bool,
    /// Another pruner was at work, so this step deleted nothing.
    pub(super) busy: bool,
    /// What stays, and why.
    pub(super) kept: Vec<(String, String)>,
}

impl Walk {
    /// A walk for each kind that is not kept without a limit. Sessions come after the runs, which keep the sessions
    /// of their owners.
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
        // At the beginning the server is asked all the same: whether this role may prune must not depend on what is
        // old.
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
            // The server undid it all.
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

    /// Load, fold, replace.
    async fn cut(&mut self, db: &Database, by: By<'_>) -> Result<Step> {
        let most = i32::try_from(self.size + 1).unwrap_or(i32::MAX);
        let loaded = statements::oldest_events(db, self.keep, most).await?;
        // What is old enough up to the first that is not.
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

/// A constraint or a trigger of the service's own refuses, or somebody holds what has to be locked.
fn is_of_a_row(error: &Error) -> bool {
    error.sqlstate().is_some_and(|code| code.starts_with("23") || code.starts_with("P0") || code == "55P03")
}
