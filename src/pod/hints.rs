//! How a pod acts on notices: it reads the rows, and acts on the rows alone (L11).
//!
//! Each kind of notice has a [`Gate`], so a flood costs a bounded number of statements. A sender can make a pod read,
//! and nothing more. Nothing depends on a notice: sweeps read the same rows.

use std::time::Duration;

use super::local::Local;
use crate::error::Result;
use crate::membership::PodEvent;
use crate::membership::clock;
use crate::meters;
use crate::pg::session::Session;
use crate::protocol::Moment;
use crate::protocol::event::EventKind;
use crate::protocol::neighbours;
use crate::protocol::notices::{Gate, Heard, Word};
use crate::runs::StopReason;
use crate::store::notices::{self, EVENTS_MOST, LoggedEvent};

/// Events that come in a burst (fifty pods boot at once) lead to one roster probe. Longer delays the reaction; shorter
/// costs more probes.
const GATHER: Duration = Duration::from_millis(50);
/// Of a large fleet, the pods read the event log within so much time for each pod, and do then what the events ask for:
/// a probe of their neighbours and a recovery pass. So the server sees about one of them per millisecond, however many
/// pods there are. If all read at once, the service's own statements wait behind hundreds of them.
const EACH: Duration = Duration::from_millis(1);
/// The same for a probe of the whole roster, which costs more.
const EACH_WHOLE: Duration = Duration::from_millis(20);
/// How long the other pods leave a dead pod's runs to its burier, which has read them already and takes its share
/// first.
const BURIER_GOES_FIRST: Duration = Duration::from_millis(20);

/// The reads that notices asked for and that were not done yet.
#[derive(Default)]
pub(super) struct Hints {
    /// A probe of the roster and its locks.
    pub(super) probe: Gate,
    /// A pod that may not bury saw a loss, so the next probe is that of a burial.
    pub(super) told_of_a_loss: bool,
    log: Gate,
    runs: Gate,
    asked: Gate,
}

impl Hints {
    /// The hints of a new session: no notice told it of earlier events, so it reads the log first.
    pub(super) fn of_a_new_session(peers: usize) -> Self {
        let mut hints = Self::default();
        hints.suit(peers);
        hints.log.ask(clock::now(), Duration::ZERO);
        hints
    }

    /// Takes in the notices that were heard.
    pub(super) fn hear(&mut self, local: &Local, heard: &Heard) {
        let (now, words) = (clock::now(), heard.words);
        for word in Word::ALL.into_iter().filter(|word| words.has(*word)) {
            meters::count(meters::NOTICES_HEARD, "word", word.as_str());
        }
        if words.has(Word::Look) {
            self.probe.ask(now, Duration::ZERO);
            self.told_of_a_loss = true;
            local.whole_asked_for(spread(local, EACH_WHOLE));
        }
        if words.has(Word::Free) {
            // The pod that was granted the lock is about to bury. Probe when that should be done, and leave that pod
            // alone until then.
            local.note_report();
            self.probe.ask(now, local.shared.member.settings.hold_probe_interval);
        }
        if words.has(Word::Roster) {
            self.log.ask(now, spread(local, EACH));
        }
        if words.has(Word::Recover) {
            local.shared.engine.recover_hinted.notify_one();
        }
        if words.has(Word::Take) {
            local.shared.engine.take_offer();
        }
        if words.has(Word::Runs) {
            self.runs.ask(now, Duration::ZERO);
        }
        if words.has(Word::Asked) {
            self.asked.ask(now, Duration::ZERO);
        }
        if words.has(Word::Workers) {
            local.shared.workers.hear();
        }
    }

    /// Makes the gaps between reads suit the size of the fleet.
    pub(super) fn suit(&mut self, peers: usize) {
        for gate in [&mut self.probe, &mut self.log, &mut self.runs, &mut self.asked] {
            gate.suit(peers);
        }
    }

    /// When the next read is due. `None`: no read is due.
    pub(super) fn due(&self) -> Option<Moment> {
        [&self.probe, &self.log, &self.runs, &self.asked].into_iter().filter_map(Gate::due).min()
    }

    /// A read that was due failed. The same notices do not start it again; a sweep reads the rows.
    pub(super) fn failed(&mut self) {
        for gate in [&mut self.probe, &mut self.log, &mut self.runs, &mut self.asked] {
            gate.end(clock::now(), false);
        }
    }

    /// A roster probe was made. It also starts the reads that notices start otherwise, in case every notice was lost.
    pub(super) fn after_a_probe(&mut self, local: &Local) {
        let now = clock::now();
        if local.roster_version() > local.log_read.get() {
            self.log.ask(now, Duration::ZERO);
        }
        // A recovery pass compares a pod's runs with their rows, but a draining pod makes none.
        if local.shared.member.is_draining() && local.shared.engine.registry.len() > 0 {
            self.runs.ask(now, Duration::ZERO);
        }
    }

    /// Makes the reads that are due, except the roster probe, and acts on the rows. Returns how soon a roster probe is
    /// due because of them.
    pub(super) async fn follow(&mut self, local: &Local, session: &Session) -> Result<Option<Duration>> {
        if self.asked.is_due(clock::now()) {
            self.asked.begin(clock::now());
            local.note_hint("asked");
            let is_asked = look_whether_asked(local, session).await?;
            self.asked.end(clock::now(), is_asked);
        }
        if self.runs.is_due(clock::now()) {
            self.runs.begin(clock::now());
            local.note_hint("runs");
            look_at_own_runs(local, session).await?;
            // The same runs may be found again until their handlers have stopped.
            self.runs.end(clock::now(), false);
        }
        let mut probe = None;
        if self.log.is_due(clock::now()) {
            self.log.begin(clock::now());
            local.note_hint("log");
            let told = notices::events_after(session, local.log_read.get()).await?;
            self.log.end(clock::now(), !told.is_empty());
            if told.len() >= EVENTS_MOST {
                self.log.ask(clock::now(), Duration::ZERO);
            }
            for event in told {
                local.log_read.set(event.idx);
                probe = act_on(local, event).or(probe);
            }
        }
        Ok(probe)
    }
}

async fn look_whether_asked(local: &Local, session: &Session) -> Result<bool> {
    let own = local.shared.member.incarnation();
    let Some(requests) = notices::requests(session, own).await? else { return Ok(false) };
    Ok(local.shared.follow(own, requests))
}

/// Stops the runs that this pod no longer owns. Starts a recovery pass for the runs that it owns and does not run.
async fn look_at_own_runs(local: &Local, session: &Session) -> Result<()> {
    let shared = &local.shared;
    let known = shared.engine.registry.known();
    let runs = notices::own_runs(session, shared.member.incarnation(), &known).await?;
    for (run_id, fence, is_cancelled) in &runs.lost {
        let reason = if *is_cancelled { StopReason::Cancelled } else { StopReason::Fenced };
        shared.engine.stop_run(*run_id, Some(*fence), reason);
    }
    // Readers on this pod are not notified of the end of a run that this pod executes.
    shared.engine.readers.stir(runs.lost.iter().map(|(run_id, ..)| run_id));
    if runs.more {
        shared.engine.recover_hinted.notify_one();
    }
    Ok(())
}

/// Acts on an event of the log. Returns how soon a roster probe is due because of it.
fn act_on(local: &Local, told: LoggedEvent) -> Option<Duration> {
    let shared = &local.shared;
    if let Some(alert) = &told.alert {
        metrics::counter!(meters::ALERTS, "kind" => alert.kind.as_str()).increment(1);
        shared.member.publish_alert(alert.clone());
    }
    let is_ours = told.incarnation == shared.member.incarnation();
    // The run was quarantined: the readers of its stream should see the end.
    shared.engine.readers.stir(told.run.iter());
    let Some(kind) = EventKind::parse(&told.kind) else {
        tracing::debug!(
            target: "podlock", event = "unknown_event", pod = %shared.member.pod_id, kind = told.kind, idx = told.idx,
            "an event of a newer version is ignored"
        );
        return None;
    };
    let probe = match kind {
        EventKind::Buried => {
            // Before the application hears of the burial.
            shared.workers.bury(told.incarnation);
            shared.engine.recover_within(BURIER_GOES_FIRST);
            if !is_ours {
                local.note_burials(&[told.incarnation]);
            }
            Some(GATHER)
        }
        EventKind::Joined | EventKind::Draining => {
            // The pod replaced an incarnation whose runs are orphans now. It goes first, and the others soon after.
            if told.reason.is_some() && !is_ours {
                shared.engine.recover_within(shared.member.settings.hold_probe_interval);
                if let Some(pod) = &told.pod {
                    shared.workers.replaced(pod, told.incarnation);
                }
            }
            Some(GATHER)
        }
        EventKind::Returned => Some(GATHER),
        EventKind::Detached
        | EventKind::Cordoned
        | EventKind::Uncordoned
        | EventKind::Suspected
        | EventKind::Evicted
        | EventKind::Held
        | EventKind::Claimed
        | EventKind::Quarantined
        | EventKind::Snapshot
        | EventKind::RunFailed
        | EventKind::ForeignLock
        | EventKind::WorkersInactive
        | EventKind::WorkersActive => None,
    };
    publish(local, kind, told);
    probe
}

/// A random part of the time in which all pods of the fleet do the same because of one notice.
fn spread(local: &Local, each: Duration) -> Duration {
    neighbours::spread(each, local.peers(), fastrand::f64())
}

fn publish(local: &Local, kind: EventKind, told: LoggedEvent) {
    let LoggedEvent { pod: Some(pod), incarnation, reason, run, .. } = told else { return };
    let event = match (kind, run) {
        (EventKind::Joined, _) => PodEvent::Joined { pod, incarnation },
        (EventKind::Draining, _) => PodEvent::Draining { pod, incarnation },
        (EventKind::Cordoned, _) => PodEvent::Cordoned { pod, incarnation },
        (EventKind::Uncordoned, _) => PodEvent::Uncordoned { pod, incarnation },
        (EventKind::Suspected, _) => PodEvent::Suspected { pod, incarnation },
        (EventKind::Evicted, _) => PodEvent::Evicted { pod, incarnation },
        (EventKind::Quarantined, Some(run)) => PodEvent::Quarantined { run, by: pod },
        (EventKind::Buried, _) => PodEvent::Buried { pod, incarnation, reason: reason.unwrap_or_default() },
        // No `PodEvent` reports these.
        (
            EventKind::Detached
            | EventKind::Returned
            | EventKind::Held
            | EventKind::Claimed
            | EventKind::Quarantined
            | EventKind::Snapshot
            | EventKind::RunFailed
            | EventKind::ForeignLock
            | EventKind::WorkersInactive
            | EventKind::WorkersActive,
            _,
        ) => return,
    };
    local.shared.member.publish(event);
}
