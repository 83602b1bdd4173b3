//! The recovery pass: load → plan → claim → report. It needs no input, can run at any time, and forgets no orphan
//! (L6).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::StopReason;
use super::claim::{self, Pace};
use super::engine::{Engine, Loaded};
use super::handlers::Handlers;
use super::passed_over::PassedOver;
use super::registry::RegistrySnapshot;
use crate::background::part::{Next, Part};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, RunId};
use crate::membership::clock;
use crate::nag::Nag;
use crate::protocol::Moment;
use crate::protocol::neighbours;
use crate::protocol::notices::Gate;
use crate::protocol::offer::{self, Tell, Untold};
use crate::protocol::poison;
use crate::protocol::recover::{self, Candidate, Memory, Rules, Seen, Sightings};
use crate::protocol::state::RunState;
use crate::store::candidates::{self, Wanted};
use crate::store::runs::{self, Owner};

/// How many orphans one load returns at most: `AHEAD` times as many as this pod has room for, and no more than `LOAD`.
/// Most loads return far fewer: this pod's share, and some to spare. With shorter lists, a pod that can take only some
/// of the orphans, such as one suspect at a time, may not see those that it can take. Longer lists take long to send.
const AHEAD: usize = 8;
const LOAD: usize = 16_384;

/// The least time between two warnings that passes fail, unless the lease is longer.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// What a pass remembers for the next pass.
#[derive(Default)]
struct Passes {
    last: Sightings,
    short_of_room: bool,
    pace: Pace,
    passed_over: PassedOver,
    /// The next pass looks for orphans that still name an owner.
    whole: bool,
    /// The next pass loads all orphans, and not only this pod's share ([`recover::must_see_all`]).
    wide: bool,
    /// An event asked for a whole pass. What it finds may not have been committed yet, so another one follows soon.
    asked: bool,
    /// When such a pass is due although nothing asked for one. `None`: now.
    whole_due: Option<Moment>,
}

/// A load that has not been made yet.
pub(crate) struct Load {
    own: Incarnation,
    memory: Memory,
    wide: bool,
    held_back: bool,
    hidden: bool,
    pub(crate) wanted: Wanted,
}

impl Load {
    /// Records what this process knows, before it loads the rows. A run that begins later is not in this record, so
    /// the plan does not count it as missing from the rows. Only if `whole`, orphans that still name an owner are
    /// loaded. Only if `wide`, orphans beyond this pod's share are loaded.
    pub(crate) fn new(engine: &Engine, own: Incarnation, whole: bool, wide: bool) -> Self {
        let RegistrySnapshot { running, pending, winding_down, room, room_of } = engine.registry.snapshot();
        // This pod does not claim runs that are stopping here, or that it released just now.
        let mut passed_over = winding_down;
        passed_over.extend(&pending);
        passed_over.extend(engine.registry.yielded_lately(clock::now(), engine.member.settings.sweep_interval));
        passed_over.extend(engine.registry.aside(clock::now()));
        // Leaves out kinds that this pod has no room for. Otherwise their runs could fill the list, which has a limit.
        let mut kinds = engine.kinds.clone();
        let known = kinds.len();
        kinds.retain(|kind| room_of.get(kind.as_str()) != Some(&0));
        let suspect_from = poison::suspect_from(engine.member.settings.max_crashes);
        let suspect_from =
            (!engine.registry.suspects(clock::now(), engine.member.settings.lease).is_empty()).then_some(suspect_from);
        let held_back = kinds.len() < known || suspect_from.is_some();
        let hidden = held_back || !passed_over.is_empty();
        let limit = room.saturating_mul(AHEAD).min(LOAD) + 1;
        let wanted = Wanted::new(own, kinds, limit, &passed_over, suspect_from, whole, wide);
        Self {
            own,
            memory: Memory { running, pending, room, room_of, ..Memory::default() },
            wide,
            held_back,
            hidden,
            wanted,
        }
    }

    pub(crate) fn with(self, seen: Seen) -> Loaded {
        let Self { own, memory, wide, held_back, hidden, .. } = self;
        Loaded { own, memory, wide, held_back, hidden, seen }
    }

    async fn run(self, engine: &Engine) -> Result<Loaded> {
        let seen = candidates::candidates(&engine.db, &self.wanted).await?;
        Ok(self.with(seen))
    }
}

/// The result of a pass.
struct Report {
    claimed: usize,
    adopted: usize,
    /// When another pass is due: because there was more to claim, because something was seen for the first time, or to
    /// look back after a claim.
    again: Option<Duration>,
}

/// Makes passes: on every sweep, whenever the pod is woken, and when room frees after a pass was short of it.
pub(crate) struct Recovery {
    engine: Arc<Engine>,
    handlers: Arc<Handlers>,
    from_burials: mpsc::Receiver<Loaded>,
    passes: Passes,
    /// When to say again that passes fail.
    nag: Nag,
    /// When notices of orphans make a pass begin.
    hints: Gate,
}

impl Recovery {
    pub(crate) fn new(engine: Arc<Engine>, handlers: Arc<Handlers>, from_burials: mpsc::Receiver<Loaded>) -> Self {
        let nag = Nag::new(engine.member.settings.lease.max(SAY_AGAIN));
        Self { engine, handlers, from_burials, passes: Passes::default(), nag, hints: Gate::default() }
    }
}

impl Part for Recovery {
    const NAME: &'static str = "recovery";

    fn first(&self) -> Next {
        Next::Within(Duration::ZERO)
    }

    async fn woken(&mut self) {
        loop {
            let hinted = self.hints.due().map(|due| due.saturating_sub(clock::now()));
            tokio::select! {
                biased;
                () = self.engine.recover_now.notified() => {
                    (self.passes.whole, self.passes.asked) = (true, true);
                    return;
                }
                () = self.engine.recovery_is_due() => {
                    (self.passes.whole, self.passes.asked) = (true, true);
                    return;
                }
                () = self.engine.registry.freed.notified(), if self.passes.short_of_room => return,
                () = tokio::time::sleep(hinted.unwrap_or_default()), if hinted.is_some() => return,
                // Hints are the last branch, so a flood of them delays nothing else.
                () = self.engine.recover_hinted.notified() => self.hints.ask(clock::now(), Duration::ZERO),
            }
        }
    }

    fn period(&self) -> Option<Duration> {
        Some(self.engine.member.settings.jittered_sweep(fastrand::f64()))
    }

    async fn work(&mut self) -> Next {
        let Self { engine, handlers, from_burials, passes, nag, hints } = self;
        if hints.is_due(clock::now()) {
            engine.member.note_hint("recover");
        }
        hints.begin(clock::now());
        // A pod that takes no runs now hands the choice on.
        let was_chosen = engine.offers.was_chosen();
        let may_take = engine.member.may_take_work().is_ok();
        if was_chosen && !may_take {
            engine.offers.add(Untold { everybody: true, ..Untold::default() });
        }
        let was_chosen = was_chosen && may_take;
        // A cordoned pod makes passes as well: it compares its own runs with their rows. It loads no orphans.
        let Some(incarnation) = engine.member.may_keep_work() else {
            hints.end(clock::now(), false);
            return Next::Wait;
        };
        let passed = pass(engine, handlers, incarnation, passes, from_burials.try_recv().ok(), was_chosen).await;
        hints.end(clock::now(), passed.as_ref().is_ok_and(|report| report.claimed + report.adopted > 0));
        match passed {
            Ok(report) => {
                nag.passed();
                if report.claimed + report.adopted > 0 {
                    tracing::info!(
                        target: "podlock", event = "claimed", pod = %engine.member.pod_id, incarnation = %incarnation,
                        runs = report.claimed, adopted = report.adopted, "took runs up"
                    );
                }
                report.again.map_or(Next::Wait, Next::Within)
            }
            // A wake makes a pass begin at once even after a failure. So this is no back-off.
            Err(e) => {
                if was_chosen {
                    engine.offers.choose();
                }
                report_failure(engine, &e, nag);
                if e.is_transient() { Next::Within(engine.member.settings.reconnect_backoff_max) } else { Next::Wait }
            }
        }
    }
}

/// Logs that a pass failed, at most once per nag interval. The pod's sessions report an outage themselves, so a pass
/// warns of one only when it lasts.
fn report_failure(engine: &Engine, error: &Error, nag: &mut Nag) {
    let is_outage = error.is_unconnected() || error.is_session_lost() || error.kind() == ErrorKind::Unreachable;
    let patience = if is_outage { engine.member.settings.lease } else { Duration::ZERO };
    match nag.failed(clock::now(), patience) {
        Some(times) => {
            tracing::warn!(
                target: "podlock", event = "recovery_failed", pod = %engine.member.pod_id, times, error = %error,
                "recovery passes fail; the next one comes"
            );
        }
        None => {
            tracing::debug!(
                target: "podlock", event = "recovery_failed", pod = %engine.member.pod_id, error = %error,
                "a recovery pass failed; the next one comes"
            );
        }
    }
}

async fn pass(
    engine: &Arc<Engine>,
    handlers: &Handlers,
    own: Incarnation,
    passes: &mut Passes,
    from_a_burial: Option<Loaded>,
    was_chosen: bool,
) -> Result<Report> {
    let began = clock::now();
    // The burial may have loaded its rows before the event that woke this pass. So another pass follows, with a load
    // of its own.
    let (loaded, may_be_old) = match from_a_burial {
        Some(loaded) if loaded.own == own => (loaded, true),
        _ => {
            // The pods of a large fleet look for owners that are gone no more often than those of a small one, all
            // together. An owner that goes leaves an event, which asks for a whole pass.
            let (now, peers) = (clock::now(), engine.member.peers());
            if neighbours::are_all(peers) || passes.whole_due.is_none_or(|due| due <= now) {
                passes.whole = true;
            }
            let loaded = Load::new(engine, own, passes.whole, passes.wide).run(engine).await?;
            if passes.whole {
                let sweep = engine.member.settings.sweep_interval;
                let rarer = neighbours::rarer(sweep, peers).mul_f64(0.5 + fastrand::f64());
                passes.whole_due = Some(now + if std::mem::take(&mut passes.asked) { sweep } else { rarer });
            }
            (loaded, false)
        }
    };
    let Loaded { mut memory, wide, held_back, hidden, seen, .. } = loaded;
    memory.last = std::mem::take(&mut passes.last);
    memory.suspects = engine.registry.suspects(clock::now(), engine.member.settings.lease);
    memory.companions = engine.member.companions();
    let rules = rules(engine);
    let mut plan = recover::plan(own, &rules, &memory, &seen, clock::now());
    let first_seen = !plan.sightings.unclaimed.is_empty();
    // Whether it takes all that it loaded, so that it may take some of the others as well.
    let more = seen.unlisted > 0;
    let takes_all = more && plan.sightings.left.is_empty();
    passes.wide = recover::must_see_all(&plan, &seen, wide);
    passes.last = std::mem::take(&mut plan.sightings);
    // A run that is no longer ours frees its place when its task ends, and may then be claimable.
    passes.short_of_room = plan.short_of_room || held_back || !plan.check.is_empty();
    plan.cleared.iter().for_each(|run_id| engine.registry.clear(*run_id));
    let now = engine.registry.snapshot();
    for row in &plan.release {
        // This process may have begun the run after the rows were loaded.
        if now.running.contains_key(&row.run_id) || now.pending.contains(&row.run_id) {
            continue;
        }
        let owner = Owner { run_id: row.run_id, incarnation: own, fence: row.fence };
        runs::give_back(&engine.db, owner, runs::ONLY, "yielded").await?;
        engine.registry.note_yielded(row.run_id, clock::now());
        engine.offers.add(engine.untold_to_others(&row.kind));
    }
    check(engine, own, &plan.check).await?;
    if was_chosen && may_be_old {
        engine.offers.choose();
    } else if was_chosen {
        tell_of_the_rest(engine, offer::after_a_pass(&plan, &seen, hidden), &seen.takers);
    }
    // The pod may have been detached, or asked to drain, since the pass began.
    if engine.member.may_keep_work() != Some(own) {
        if was_chosen {
            engine.offers.add(Untold { everybody: true, ..Untold::default() });
        }
        return Ok(Report { claimed: 0, adopted: 0, again: None });
    }
    let claimer = claim::By { engine, handlers, own };
    let wanted: Vec<&Candidate> = plan.adopt.iter().chain(&plan.claim).collect();
    let mut took = claim::claim(claimer, rules.max_crashes, &wanted, &mut passes.pace).await?;
    let given_up: Vec<&Candidate> = plan.give_up.iter().collect();
    let ended = claim::claim(claimer, poison::LAST_POD_BEARS, &given_up, &mut passes.pace).await?;
    took.add(ended);
    let adopted = took.begun.iter().filter(|id| plan.adopt.iter().any(|c| c.run_id == **id)).count();
    let taken: BTreeSet<RunId> = took.begun.iter().copied().collect();
    let missed: Vec<RunId> = wanted.iter().map(|run| run.run_id).filter(|run_id| !taken.contains(run_id)).collect();
    passes.passed_over.say(engine, &missed, &took.begun).await;
    let some_were_others = took.begun.len() + took.passed_over < wanted.len();
    let goes_on = (takes_all || some_were_others) && !took.begun.is_empty();
    let again = if may_be_old || !plan.cleared.is_empty() || goes_on {
        Some(Duration::ZERO)
    } else if !took.begun.is_empty() {
        let most = engine.member.settings.hold_probe_interval;
        Some(recover::looks_back_after(clock::now().saturating_sub(began), most))
    } else if first_seen || some_were_others || (passes.wide && !wide) {
        Some(engine.member.settings.hold_probe_interval)
    } else {
        None
    };
    let again = again.into_iter().chain(plan.again).min();
    // The next pass is whole as well if this one left, or could not see, orphans that name an owner.
    let named = wanted.iter().any(|row| row.owner.is_some_and(|owner| owner != own));
    passes.whole &= may_be_old || named || more || held_back || plan.withheld > 0 || passes.last.names_owners();
    Ok(Report { claimed: took.begun.len() - adopted, adopted, again })
}

/// Has the herald tell other pods of the orphans that a pass leaves to them.
fn tell_of_the_rest(engine: &Engine, tell: Tell, takers: &[String]) {
    let untold = match tell {
        Tell::Nobody => return,
        Tell::Pods(places) => Untold {
            pods: places.into_iter().filter_map(|place| takers.get(place).cloned()).collect(),
            ..Untold::default()
        },
        Tell::Kinds(kinds) => Untold { kinds: kinds.iter().map(ToString::to_string).collect(), ..Untold::default() },
        Tell::Everybody => Untold { everybody: true, ..Untold::default() },
    };
    engine.offers.add(untold);
}

fn rules(engine: &Engine) -> Rules {
    let settings = &engine.member.settings;
    Rules {
        max_crashes: settings.max_crashes,
        claim_delay: settings.claim_delay,
        share_wait: settings.longest_sweep(),
        lease: settings.lease,
    }
}

/// Checks runs in memory that the load did not return as ours. Each is read again, and told to stop if it is not ours.
async fn check(engine: &Engine, own: Incarnation, run_ids: &[RunId]) -> Result<()> {
    for run_id in run_ids {
        let Some(fence) = engine.registry.fence_of(*run_id) else { continue };
        let reason = match runs::status(&engine.db, *run_id).await? {
            // The run is ours, or this very attempt ended it and may not have had the reply yet.
            Some(s)
                if [RunState::Running, RunState::Succeeded, RunState::Failed]
                    .iter()
                    .any(|state| state.is(&s.state))
                    && s.owner == Some(own)
                    && s.fence == fence =>
            {
                continue;
            }
            Some(s) if RunState::Cancelled.is(&s.state) => StopReason::Cancelled,
            _ => StopReason::Fenced,
        };
        engine.stop_run(*run_id, Some(fence), reason);
    }
    Ok(())
}
