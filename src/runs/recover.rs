//! The recovery pass: load → plan → claim → report. It takes no input, can run at any time, and forgets no orphan (L6).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::registry::Reservation;
use super::{StopReason, execute};
use crate::error::Result;
use crate::id::{Incarnation, RunId};
use crate::pod::clock;
use crate::pod::shared::Shared;
use crate::postgres::runs::{self, Owner};
use crate::protocol::Moment;
use crate::protocol::recover::{self, Candidate, Memory};

/// The most orphans that one statement claims.
const BATCH: usize = 500;
/// How an owner ended whose end counts as a crash of the run.
const CRASHES: [&str; 3] = ["lost", "stalled", "replaced"];

/// What a pass remembers for the next.
#[derive(Default)]
struct Passes {
    seen_unclaimed: BTreeSet<RunId>,
    /// When an owner was first seen gone, for `claim_delay`.
    gone_since: BTreeMap<Incarnation, Moment>,
    short_of_room: bool,
}

/// What a pass begins with: what was known before the load, and what the load brought.
pub(crate) struct Loaded {
    own: Incarnation,
    memory: Memory,
    limit: usize,
    rows: Vec<Candidate>,
}

/// A load that is about to be made.
pub(crate) struct Load {
    own: Incarnation,
    memory: Memory,
    pub(crate) kinds: Vec<String>,
    pub(crate) passed_over: Vec<RunId>,
    pub(crate) limit: usize,
}

impl Load {
    /// What this process knows now. Taken before the load: what begins later is not in it, and is not missed by it.
    pub(crate) fn new(shared: &Shared, own: Incarnation) -> Self {
        let (running, pending, room) = shared.registry.snapshot();
        // What winds down here, and what this pod gave back just now, is not for it to claim.
        let mut passed_over: Vec<RunId> = running.keys().chain(&pending).copied().collect();
        passed_over.extend(shared.registry.yielded_lately(clock::now(), shared.settings.sweep_interval));
        let kinds = shared.handlers.keys().cloned().collect();
        let memory = Memory { running, pending, seen_unclaimed: BTreeSet::new(), room };
        Self { own, memory, kinds, passed_over, limit: room.min(BATCH) + 1 }
    }

    pub(crate) fn with(self, rows: Vec<Candidate>) -> Loaded {
        Loaded { own: self.own, memory: self.memory, limit: self.limit, rows }
    }

    async fn run(self, shared: &Shared) -> Result<Loaded> {
        let rows = runs::candidates(&shared.db, self.own, &self.kinds, &self.passed_over, self.limit).await?;
        Ok(self.with(rows))
    }
}

/// Begins a pass with what a burial has loaded on its own session, so that it need not ask again.
pub(crate) fn recover_with(shared: &Shared, loaded: Option<Loaded>) {
    if loaded.is_some() {
        *shared.loaded.lock().unwrap_or_else(PoisonError::into_inner) = loaded;
    }
    shared.recover_now.notify_one();
}

/// What a pass did.
struct Report {
    claimed: usize,
    adopted: usize,
    /// Another pass is due at once: there was more, or something was seen for the first time.
    again: Option<Duration>,
}

/// Passes until the pod ends: on every sweep, whenever nudged, and when room frees after it was short.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut passes = Passes::default();
    let mut due = Duration::ZERO;
    loop {
        tokio::select! {
            biased;
            () = shared.root.cancelled() => return,
            () = shared.recover_now.notified() => {}
            () = shared.registry.freed.notified(), if passes.short_of_room => {}
            () = tokio::time::sleep(due) => {}
        }
        due = shared.settings.jittered_sweep(fastrand::f64());
        let Ok(incarnation) = shared.may_take_work() else { continue };
        let passed = tokio::select! {
            biased;
            () = shared.root.cancelled() => return,
            passed = pass(&shared, incarnation, &mut passes) => passed,
        };
        match passed {
            Ok(report) => {
                if let Some(again) = report.again {
                    due = due.min(again);
                }
                if report.claimed + report.adopted > 0 {
                    tracing::info!(
                        target: "podlock", event = "claimed", pod = %shared.pod_id, incarnation = %incarnation,
                        runs = report.claimed, adopted = report.adopted, "took runs up"
                    );
                }
            }
            Err(e) if !e.is_transient() => {
                tracing::warn!(target: "podlock", event = "recovery_failed", pod = %shared.pod_id, error = %e, "a recovery pass failed; the next one comes");
            }
            Err(e) => {
                tracing::debug!(target: "podlock", event = "recovery_failed", pod = %shared.pod_id, error = %e, "a recovery pass failed; the next one comes");
                due = due.min(shared.settings.reconnect_backoff_max);
            }
        }
    }
}

async fn pass(shared: &Arc<Shared>, own: Incarnation, passes: &mut Passes) -> Result<Report> {
    let from_a_burial = shared.loaded.lock().unwrap_or_else(PoisonError::into_inner).take();
    // What a burial has loaded may be older than what this pass was woken for, so a pass of its own follows.
    let (loaded, may_be_old) = match from_a_burial {
        Some(loaded) if loaded.own == own => (loaded, true),
        _ => (Load::new(shared, own).run(shared).await?, false),
    };
    let Loaded { mut memory, limit, rows, .. } = loaded;
    memory.seen_unclaimed = std::mem::take(&mut passes.seen_unclaimed);
    let more_rows = rows.len() >= limit;
    let (rows, delayed) = after_claim_delay(shared, own, rows, &mut passes.gone_since);
    let plan = recover::plan(own, &memory, &rows);
    let first_seen = !plan.unclaimed.is_empty();
    passes.seen_unclaimed = plan.unclaimed;
    // A run that is no longer ours frees its place, and perhaps its row, when its task ends.
    passes.short_of_room = plan.short_of_room || !plan.check.is_empty();
    let (running_now, pending_now, _) = shared.registry.snapshot();
    for row in &plan.release {
        // The rows may be older than what this process has begun meanwhile.
        if running_now.contains_key(&row.run_id) || pending_now.contains(&row.run_id) {
            continue;
        }
        let owner = Owner { run_id: row.run_id, incarnation: own, fence: row.fence };
        runs::give_back(&shared.db, owner).await?;
        shared.registry.note_yielded(row.run_id, clock::now());
    }
    check(shared, own, &plan.check).await?;
    let wanted: Vec<Candidate> = plan.adopt.iter().chain(&plan.claim).take(BATCH).copied().collect();
    let more = plan.adopt.len() + plan.claim.len() > BATCH || more_rows;
    let claimed = claim(shared, own, &wanted).await?;
    let adopted = claimed.iter().filter(|id| plan.adopt.iter().any(|c| c.run_id == **id)).count();
    let again = if may_be_old || (more && !claimed.is_empty()) {
        Some(Duration::ZERO)
    } else if first_seen {
        Some(shared.settings.hold_probe_interval)
    } else {
        delayed
    };
    Ok(Report { claimed: claimed.len() - adopted, adopted, again })
}

/// Leaves out the orphans whose owner has not been gone for `claim_delay`, by our own clock; and when to look again.
fn after_claim_delay(
    shared: &Shared,
    own: Incarnation,
    rows: Vec<Candidate>,
    gone_since: &mut BTreeMap<Incarnation, Moment>,
) -> (Vec<Candidate>, Option<Duration>) {
    let delay = shared.settings.claim_delay;
    if delay.is_zero() {
        return (rows, None);
    }
    let now = clock::now();
    let owners: BTreeSet<_> = rows.iter().filter_map(|c| c.owner).filter(|o| *o != own).collect();
    gone_since.retain(|owner, _| owners.contains(owner));
    for owner in owners {
        gone_since.entry(owner).or_insert(now);
    }
    let waits = |c: &Candidate| {
        c.owner.and_then(|o| gone_since.get(&o)).map_or(Duration::ZERO, |s| (*s + delay).saturating_sub(now))
    };
    let next = rows.iter().map(waits).filter(|w| !w.is_zero()).min();
    (rows.into_iter().filter(|c| waits(c).is_zero()).collect(), next)
}

/// Claims, and begins what was claimed. Returns the runs that came back.
async fn claim(shared: &Arc<Shared>, own: Incarnation, wanted: &[Candidate]) -> Result<Vec<RunId>> {
    let mut places: BTreeMap<RunId, Reservation<'_>> = BTreeMap::new();
    for candidate in wanted {
        if let Some(place) = shared.registry.reserve(candidate.run_id) {
            places.insert(candidate.run_id, place);
        }
    }
    let wanted: Vec<Candidate> = wanted.iter().filter(|c| places.contains_key(&c.run_id)).copied().collect();
    let claimed = runs::claim(&shared.db, own, &wanted, &CRASHES, shared.registry.highest_fence()).await?;
    let mut begun = Vec::with_capacity(claimed.len());
    for run in claimed {
        let (Some(place), Some(handler)) = (places.remove(&run.run_id), shared.handlers.get(&run.kind).cloned()) else {
            continue;
        };
        begun.push(run.run_id);
        execute::begin(shared, handler, place, run, own);
    }
    Ok(begun)
}

/// Runs in memory that the load did not show as ours: each is read back, and told to stop if that is so.
async fn check(shared: &Shared, own: Incarnation, run_ids: &[RunId]) -> Result<()> {
    for run_id in run_ids {
        let Some(fence) = shared.registry.fence_of(*run_id) else { continue };
        let reason = match runs::standing(&shared.db, *run_id).await? {
            // Ours, or ended by this very attempt, which may not have had its reply yet.
            Some(s)
                if matches!(s.state.as_str(), "running" | "succeeded" | "failed")
                    && s.owner == Some(own)
                    && s.fence == fence =>
            {
                continue;
            }
            Some(s) if s.state == "cancelled" => StopReason::Cancelled,
            _ => StopReason::Fenced,
        };
        shared.stop_run(*run_id, reason);
    }
    Ok(())
}

/// Raises the pulse by which the keeper sees that the application's runtime runs tasks.
pub(crate) async fn pulse(shared: Arc<Shared>) {
    let interval = (shared.settings.stall_after / 8).min(Duration::from_millis(500));
    loop {
        shared.runtime_pulse.fetch_add(1, Ordering::AcqRel);
        tokio::select! {
            biased;
            () = shared.root.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}
