//! Deletes rows that need not be kept any more, in rounds of small transactions.
//!
//! A round deletes at most one batch of each kind. A kind that fails does not stop the others. A row may be kept by a
//! foreign key or a trigger of the service's own. Such a row is logged and passed over ([`super::walk`]). Rounds of
//! different pods do not wait for one another: the second pod skips its step. Nothing here holds a lock for which a
//! claim, an end of a run, a burial or an event could wait. The server's clock says how old a row is. Nothing else is
//! decided by that clock.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::background::part::{Next, Part};
use crate::error::{Error, ErrorKind, Result};
use crate::history::keep::{By, Retention};
use crate::history::walk::{Step, Walk};
use crate::membership::Membership;
use crate::pg::pool::Database;
use crate::store::history as statements;

/// The time between two rounds of a pod, if the first left rows.
const PACE: Duration = Duration::from_secs(1);
/// The time between two tries of an operator while a pod prunes.
const AGAIN: Duration = Duration::from_millis(50);
/// How many steps in a row an operator may find another pruner at work before it gives up.
const BUSY_STEPS: u32 = 200;
/// The most reasons of one kind that a report names. Rows with a further reason are counted with the last one.
const REASONS_MAX: usize = 16;
/// The most reasons that a pod logs. A trigger may give each row a different reason.
const NAMED_MAX: usize = 64;

/// How many rows a prune deleted, or would delete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pruned {
    /// Runs, with their attempts and streams.
    pub runs: i64,
    /// Events. One event, a snapshot, replaces them.
    pub events: i64,
    /// Incarnations that had ended.
    pub sessions: i64,
    /// Rows that are old enough and could not be deleted, grouped by the reason.
    pub kept: Vec<Kept>,
}

/// Rows that are old enough, but kept by a foreign key, a trigger or a lock of the service's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Kept {
    /// `run`, `event` or `session`.
    pub what: &'static str,
    /// How many rows. Of events only the first is counted, because a log is cut only at its beginning.
    pub count: i64,
    /// The first of these rows: the id of a run, the position of an event, the incarnation of a session.
    pub first: String,
    /// The server's message, with its SQLSTATE.
    pub why: String,
}

impl Pruned {
    fn add(&mut self, what: &'static str, step: Step) {
        match what {
            "run" => self.runs += step.deleted,
            "event" => self.events += step.deleted,
            _ => self.sessions += step.deleted,
        }
        for (first, why) in step.kept {
            let same_kind = self.kept.iter().filter(|kept| kept.what == what).count();
            let known = self.kept.iter().position(|kept| kept.what == what && kept.why == why);
            let last =
                (same_kind >= REASONS_MAX).then(|| self.kept.iter().rposition(|kept| kept.what == what)).flatten();
            match known.or(last) {
                Some(index) => self.kept[index].count += 1,
                None => self.kept.push(Kept { what, count: 1, first, why }),
            }
        }
    }

    fn in_words(&self) -> String {
        format!("{} runs, {} events and {} sessions were deleted", self.runs, self.events, self.sessions)
    }
}

/// Prunes as long as the pod lives.
pub(crate) struct Pruning {
    member: Arc<Membership>,
    db: Database,
    /// Empty if everything is kept.
    walks: Vec<Walk>,
    named: Named,
}

impl Pruning {
    pub(crate) fn new(member: Arc<Membership>, db: Database) -> Self {
        let walks = Walk::all_of(&Retention::of(&member.settings));
        Self { member, db, walks, named: Named::default() }
    }
}

impl Part for Pruning {
    const NAME: &'static str = "retention";

    fn first(&self) -> Next {
        if self.walks.is_empty() { Next::Never } else { Next::Wait }
    }

    fn period(&self) -> Option<Duration> {
        Some(self.member.settings.prune_interval.mul_f64(0.5 + fastrand::f64()))
    }

    async fn work(&mut self) -> Next {
        let Some(incarnation) = self.member.may_keep_work() else { return Next::Wait };
        let by = By { pod: Some((self.member.pod_id.as_str(), incarnation)) };
        let done = round(&self.db, by, &mut self.walks).await;
        report(&self.member, &done, &mut self.named);
        if done.more { Next::Within(PACE) } else { Next::Wait }
    }
}

/// The result of one round.
#[derive(Debug, Default)]
struct Round {
    pruned: Pruned,
    /// Whether a walk has not reached its end.
    more: bool,
    failed: Vec<Error>,
}

/// Makes one step of each walk. A walk that fails does not stop the others.
async fn round(db: &Database, by: By<'_>, walks: &mut [Walk]) -> Round {
    let mut round = Round::default();
    for walk in walks {
        match walk.step(db, by).await {
            Ok(step) => {
                round.more |= step.more;
                round.pruned.add(walk.what(), step);
            }
            Err(e) => round.failed.push(e),
        }
    }
    round
}

/// The reasons that were logged already, so that they are not logged again at each round.
#[derive(Default)]
struct Named(BTreeSet<(&'static str, String)>);

impl Named {
    fn is_new(&mut self, kept: &Kept) -> bool {
        self.0.len() < NAMED_MAX && self.0.insert((kept.what, kept.why.clone()))
    }
}

fn report(member: &Membership, Round { pruned, failed, .. }: &Round, named: &mut Named) {
    let pod = &member.pod_id;
    if pruned.runs + pruned.events + pruned.sessions > 0 {
        tracing::info!(
            target: "podlock", event = "pruned", pod = %pod, runs = pruned.runs,
            events = pruned.events, sessions = pruned.sessions, "deleted what need not be kept any more"
        );
    }
    for kept in pruned.kept.iter().filter(|kept| named.is_new(kept)) {
        tracing::warn!(
            target: "podlock", event = "prune_kept", pod = %pod, kind = kept.what, first = kept.first,
            count = kept.count, cause = kept.why, "could not be deleted, and stays; the rest is pruned. \
             This is said once"
        );
    }
    for e in failed {
        if e.is_transient() {
            tracing::debug!(
                target: "podlock", event = "prune_failed", pod = %pod, error = %e,
                "a part of the round pruned nothing; the next round comes"
            );
        } else {
            tracing::warn!(
                target: "podlock", event = "prune_failed", pod = %pod, error = %e,
                "a part of the round pruned nothing; the next round comes"
            );
        }
    }
}

/// Prunes until only rows are left that must stay or cannot be deleted. An error of one kind is returned after the
/// other kinds are done.
pub(crate) async fn all(db: &Database, by: By<'_>, keep: &Retention) -> Result<Pruned> {
    keep.check()?;
    let mut total = Pruned::default();
    let mut failed = None;
    for walk in &mut Walk::all_of(keep) {
        if let Err(e) = to_the_end(db, by, walk, &mut total).await {
            failed.get_or_insert(e);
        }
    }
    let Some(e) = failed else { return Ok(total) };
    let left = total.in_words();
    Err(if e.may_have_been_done() { e.state(format!("{left}; of one batch nothing is known")) } else { e.state(left) })
}

async fn to_the_end(db: &Database, by: By<'_>, walk: &mut Walk, total: &mut Pruned) -> Result<()> {
    let mut busy_steps = 0;
    loop {
        let step = walk.step(db, by).await?;
        let (more, busy) = (step.more, step.busy);
        total.add(walk.what(), step);
        if busy {
            busy_steps += 1;
            if busy_steps >= BUSY_STEPS {
                return Err(Error::new(ErrorKind::Timeout, "pruning: another was always at it")
                    .help("prune again later; the pods do it too"));
            }
            tokio::time::sleep(AGAIN).await;
        } else if more {
            busy_steps = 0;
        } else {
            return Ok(());
        }
    }
}

/// Counts the rows that [`all`] would delete now. It includes rows that something of the service's own keeps: only a
/// deletion shows that.
pub(crate) async fn count(db: &Database, keep: &Retention) -> Result<Pruned> {
    keep.check()?;
    let mut found = Pruned::default();
    for (states, keep) in keep.runs_by_state() {
        found.runs += statements::count_runs(db, states, keep).await?;
    }
    if let Some(keep) = keep.events_kept() {
        (found.events, found.sessions) = statements::count_events(db, keep).await?;
    }
    Ok(found)
}
