//! The recovery pass: load → plan → claim → report. It takes no input, can run at any time, and forgets no orphan (L6).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::registry::{Reservation, Snapshot};
use super::{StopReason, execute, failures};
use crate::error::Result;
use crate::id::{Incarnation, RunId};
use crate::output::{Limits, Output};
use crate::pod::clock;
use crate::pod::shared::Shared;
use crate::postgres::candidates::{self, Wanted};
use crate::postgres::runs::{self, Claimer, Claims, Ending, Owner, Unreadable};
use crate::protocol::poison::{self, Suspicion};
use crate::protocol::recover::{self, Candidate, Memory, Rules, Seen, Sightings};

/// The most orphans that one statement claims.
const BATCH: usize = 500;
/// How many times what there is room for a load brings, so that pods that share the orphans can each take others, and the
/// most that it brings: a load is as dear as a claim, and pods whose lists are short get in each other's way.
const AHEAD: usize = 8;
const LOAD: usize = 16_384;

/// How soon a pass follows one that claimed.
const AFTER_A_CLAIM: Duration = Duration::from_millis(20);

/// What a pass remembers for the next.
#[derive(Default)]
struct Passes {
    last: Sightings,
    short_of_room: bool,
}

/// What a pass begins with: what was known before the load, and what the load brought.
pub(crate) struct Loaded {
    own: Incarnation,
    memory: Memory,
    /// There may be more orphans than it brought.
    more: bool,
    /// Not all orphans were asked for: of some kinds there is no room, or a suspect runs.
    held_back: bool,
    seen: Seen,
}

/// A load that is about to be made.
pub(crate) struct Load {
    own: Incarnation,
    memory: Memory,
    limit: usize,
    held_back: bool,
    pub(crate) wanted: Wanted,
}

impl Load {
    /// What this process knows now. Taken before the load: what begins later is not in it, and is not missed by it.
    pub(crate) fn new(shared: &Shared, own: Incarnation) -> Self {
        let Snapshot { running, pending, winding_down, room, room_of } = shared.registry.snapshot();
        // What winds down here, and what this pod gave back just now, is not for it to claim.
        let mut passed_over = winding_down;
        passed_over.extend(&pending);
        passed_over.extend(shared.registry.yielded_lately(clock::now(), shared.settings.sweep_interval));
        // Those that could not be taken anyway must not fill the list.
        let mut kinds = shared.kinds();
        let known = kinds.len();
        kinds.retain(|kind| room_of.get(kind.as_str()) != Some(&0));
        let suspect_from = poison::suspect_from(shared.settings.max_crashes);
        let suspect_from =
            (!shared.registry.suspects(clock::now(), shared.settings.lease).is_empty()).then_some(suspect_from);
        let held_back = kinds.len() < known || suspect_from.is_some();
        let limit = room.saturating_mul(AHEAD).min(LOAD) + 1;
        let wanted = Wanted::new(own, kinds, limit, &passed_over, suspect_from);
        Self { own, memory: Memory { running, pending, room, room_of, ..Memory::default() }, limit, held_back, wanted }
    }

    pub(crate) fn with(self, seen: Seen) -> Loaded {
        let more = seen.rows.len() >= self.limit;
        Loaded { own: self.own, memory: self.memory, more, held_back: self.held_back, seen }
    }

    async fn run(self, shared: &Shared) -> Result<Loaded> {
        let seen = candidates::candidates(&shared.db, &self.wanted).await?;
        Ok(self.with(seen))
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
    let Loaded { mut memory, more, held_back, seen, .. } = loaded;
    memory.last = std::mem::take(&mut passes.last);
    memory.suspects = shared.registry.suspects(clock::now(), shared.settings.lease);
    memory.companions = shared.companions();
    let rules = rules(shared);
    let plan = recover::plan(own, &rules, &memory, &seen, clock::now());
    let first_seen = !plan.sightings.unclaimed.is_empty();
    passes.last = plan.sightings;
    // A run that is no longer ours frees its place, and perhaps its row, when its task ends.
    passes.short_of_room = plan.short_of_room || held_back || !plan.check.is_empty();
    plan.cleared.iter().for_each(|run_id| shared.registry.clear(*run_id));
    let now = shared.registry.snapshot();
    for row in &plan.release {
        // The rows may be older than what this process has begun meanwhile.
        if now.running.contains_key(&row.run_id) || now.pending.contains(&row.run_id) {
            continue;
        }
        let owner = Owner { run_id: row.run_id, incarnation: own, fence: row.fence };
        runs::give_back(&shared.db, owner).await?;
        shared.registry.note_yielded(row.run_id, clock::now());
    }
    check(shared, own, &plan.check).await?;
    let wanted: Vec<&Candidate> = plan.adopt.iter().chain(&plan.claim).collect();
    let mut took = Took::default();
    let mut claimer = Claimer::default();
    for batch in wanted.chunks(BATCH) {
        claim(shared, own, rules.max_crashes, batch, &mut claimer, &mut took).await?;
    }
    let given_up: Vec<&Candidate> = plan.give_up.iter().collect();
    for batch in given_up.chunks(BATCH) {
        claim(shared, own, poison::LAST_POD_BEARS, batch, &mut claimer, &mut took).await?;
    }
    drop(claimer);
    for run in &took.unreadable {
        end_unreadable(shared, run).await;
    }
    let adopted = took.begun.iter().filter(|id| plan.adopt.iter().any(|c| c.run_id == **id)).count();
    let some_were_others = took.begun.len() + took.quarantined < wanted.len();
    let goes_on = (more || some_were_others) && !took.begun.is_empty();
    let again = if may_be_old || !plan.cleared.is_empty() || goes_on {
        Some(Duration::ZERO)
    } else if !took.begun.is_empty() {
        // Others claimed at the same time: what they left for us, nobody tells us of.
        Some(AFTER_A_CLAIM)
    } else if first_seen || some_were_others {
        Some(shared.settings.hold_probe_interval)
    } else {
        None
    };
    let again = again.into_iter().chain(plan.again).min();
    Ok(Report { claimed: took.begun.len() - adopted, adopted, again })
}

fn rules(shared: &Shared) -> Rules {
    let settings = &shared.settings;
    Rules {
        max_crashes: settings.max_crashes,
        claim_delay: settings.claim_delay,
        share_wait: settings.longest_sweep(),
        lease: settings.lease,
    }
}

/// What came of claims.
#[derive(Default)]
struct Took {
    begun: Vec<RunId>,
    unreadable: Vec<Unreadable>,
    quarantined: usize,
}

/// Claims, begins what was claimed, and says what was quarantined, which is what `max_crashes` owners crashed under.
async fn claim(
    shared: &Arc<Shared>,
    own: Incarnation,
    max_crashes: u32,
    wanted: &[&Candidate],
    claimer: &mut Claimer,
    took: &mut Took,
) -> Result<()> {
    let mut places: BTreeMap<RunId, Reservation<'_>> = BTreeMap::new();
    for candidate in wanted {
        if let Some(place) = shared.registry.reserve(candidate.run_id, &candidate.kind) {
            places.insert(candidate.run_id, place);
        }
    }
    let wanted: Vec<&Candidate> = wanted.iter().filter(|c| places.contains_key(&c.run_id)).copied().collect();
    let floor = shared.registry.highest_fence();
    let Claims { claimed, unreadable, quarantined } =
        runs::claim(&shared.db, claimer, own, &wanted, max_crashes, floor).await?;
    for run in &quarantined {
        tracing::error!(
            target: "podlock", event = "quarantined", run = %run.run_id, kind = run.kind, by = %shared.pod_id,
            error = run.error, "a run that takes its owners down with it was quarantined"
        );
    }
    took.quarantined += quarantined.len();
    took.unreadable.extend(unreadable);
    for run in claimed {
        let (Some(place), Some(handler)) = (places.remove(&run.run_id), shared.handlers.get(&run.kind).cloned()) else {
            continue;
        };
        took.begun.push(run.run_id);
        let suspect = poison::judge(run.crashes, false, max_crashes) == Suspicion::Suspect;
        let place = if suspect { place.suspect() } else { place };
        execute::begin(shared, handler, place, run, own);
    }
    Ok(())
}

/// No handler of any pod could begin it: without an end it would be claimed for ever.
async fn end_unreadable(shared: &Shared, run: &Unreadable) {
    let Unreadable { owner, kind, attempt, why } = run;
    tracing::error!(target: "podlock", event = "unreadable", run = %owner.run_id, error = why.as_str(), "a run that cannot be begun is ended as failed");
    let ending = Ending::of(Output::text("").fail(format!("its input or checkpoint cannot be read: {why}")));
    let settings = &shared.settings;
    let limits = Limits { result: settings.result_max_bytes, stderr: settings.stderr_max_bytes };
    let ended = async { runs::finish(&shared.db, *owner, &ending, &ending.output().columns(limits)?, None).await };
    match ended.await {
        Ok(true) => failures::note(shared, *owner, kind, *attempt, ending.error().unwrap_or_default()),
        // It is another's by now.
        Ok(false) => {}
        Err(e) => {
            tracing::warn!(target: "podlock", event = "end_unwritten", run = %owner.run_id, fence = owner.fence.get(), error = %e, "the run's end could not be written; a later pass tries again")
        }
    }
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
