//! What a pod does about notices: it reads the rows, and acts on those alone (L11).
//!
//! Each kind of notice has a [`Gate`]. So a flood costs a bounded number of statements, and whoever sends it can make a pod
//! read, and nothing more. Nothing depends on a notice: sweeps read the same rows.

use std::time::Duration;

use tokio::time::Instant;

use super::local::Local;
use crate::error::Result;
use crate::membership::PodEvent;
use crate::membership::clock;
use crate::pg::session::Session;
use crate::protocol::Moment;
use crate::protocol::event::EventKind;
use crate::protocol::notices::{Gate, Heard, Word};
use crate::runs::StopReason;
use crate::store::notices::{self, EVENTS_MOST, LoggedEvent};

/// Events that come in a burst (fifty pods boot at once) lead to one look.
const GATHER: Duration = Duration::from_millis(50);
/// How long a pod leaves a dead pod's runs to the one that buried it, which has read them already: that one takes its
/// share without anybody in its way.
const BURIER_GOES_FIRST: Duration = Duration::from_millis(20);

/// What notices ask for and was not done yet.
#[derive(Default)]
pub(super) struct Hints {
    /// A look at the roster and its locks.
    pub(super) look: Gate,
    /// A pod that may not bury saw a loss: the next look is a burial's own.
    pub(super) told_of_a_loss: bool,
    log: Gate,
    runs: Gate,
    asked: Gate,
}

impl Hints {
    /// A session has begun: what happened before it, nobody told it.
    pub(super) fn of_a_new_session() -> Self {
        let mut hints = Self::default();
        hints.log.ask(clock::now(), Duration::ZERO);
        hints
    }

    /// Takes in what was heard.
    pub(super) fn hear(&mut self, local: &Local, heard: &Heard) {
        let (now, words) = (clock::now(), heard.words);
        if words.has(Word::Look) {
            self.look.ask(now, Duration::ZERO);
            self.told_of_a_loss = true;
        }
        if words.has(Word::Free) {
            // Whoever was granted it is about to bury: look when that should be over, and stay out of its way till then.
            local.note_report();
            self.look.ask(now, local.shared.member.settings.hold_probe_interval);
        }
        if words.has(Word::Roster) {
            self.log.ask(now, Duration::ZERO);
        }
        if words.has(Word::Recover) {
            local.shared.engine.recover_hinted.notify_one();
        }
        if words.has(Word::Runs) {
            self.runs.ask(now, Duration::ZERO);
        }
        if words.has(Word::Asked) {
            self.asked.ask(now, Duration::ZERO);
        }
    }

    /// When something is due; `None` if nothing is.
    pub(super) fn due(&self) -> Option<Moment> {
        [&self.look, &self.log, &self.runs, &self.asked].into_iter().filter_map(Gate::due).min()
    }

    /// Something that was due failed. It is not tried again because of the same notices; a sweep does it.
    pub(super) fn failed(&mut self) {
        for gate in [&mut self.look, &mut self.log, &mut self.runs, &mut self.asked] {
            gate.end(clock::now(), false);
        }
    }

    /// A look was made. What notices bring about beside it, a look brings about as well, should all of them be lost.
    pub(super) fn after_a_look(&mut self, local: &Local) {
        let now = clock::now();
        if local.roster_version() > local.log_read.get() {
            self.log.ask(now, Duration::ZERO);
        }
        // Recovery passes compare a pod's runs with their rows, but a draining pod makes none.
        if local.shared.member.is_draining() && local.shared.engine.registry.len() > 0 {
            self.runs.ask(now, Duration::ZERO);
        }
    }

    /// Reads what is due, but for the roster and its locks, and acts on it. Returns how soon a look is due because of it.
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
            // What was found may be found again, until its handler has stopped.
            self.runs.end(clock::now(), false);
        }
        let mut look = None;
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
                look = act_on(local, event).or(look);
            }
        }
        Ok(look)
    }
}

async fn look_whether_asked(local: &Local, session: &Session) -> Result<bool> {
    let shared = &local.shared;
    if shared.member.drain_requested.is_cancelled()
        || !notices::is_asked_to_drain(session, shared.member.incarnation()).await?
    {
        return Ok(false);
    }
    shared.member.drain_requested.cancel();
    Ok(true)
}

/// Tells those to stop that are not ours any more, and has those taken up that are ours and that we do not have.
async fn look_at_own_runs(local: &Local, session: &Session) -> Result<()> {
    let shared = &local.shared;
    let known = shared.engine.registry.known();
    let runs = notices::own_runs(session, shared.member.incarnation(), &known).await?;
    for (run_id, fence, is_cancelled) in &runs.lost {
        let reason = if *is_cancelled { StopReason::Cancelled } else { StopReason::Fenced };
        shared.engine.stop_run(*run_id, Some(*fence), reason);
    }
    if runs.more {
        shared.engine.recover_hinted.notify_one();
    }
    Ok(())
}

/// Acts on an event of the log. Returns how soon a look is due because of it.
fn act_on(local: &Local, told: LoggedEvent) -> Option<Duration> {
    let shared = &local.shared;
    let is_ours = told.incarnation == shared.member.incarnation();
    // It was quarantined: whoever reads its stream is to see the end.
    shared.engine.readers.stir(told.run.iter());
    let Some(kind) = EventKind::parse(&told.kind) else {
        tracing::debug!(target: "podlock", event = "unknown_event", pod = %shared.member.pod_id, kind = told.kind, idx = told.idx, "an event of a newer version is ignored");
        return None;
    };
    let look = match kind {
        EventKind::Buried => {
            recover_within(local, BURIER_GOES_FIRST);
            Some(GATHER)
        }
        EventKind::Joined | EventKind::Draining => {
            // It took the place of an incarnation whose runs are orphans now: it goes first, the others soon after.
            if told.reason.is_some() && !is_ours {
                recover_within(local, shared.member.settings.hold_probe_interval);
            }
            Some(GATHER)
        }
        EventKind::Returned => Some(GATHER),
        EventKind::Detached
        | EventKind::Suspected
        | EventKind::Evicted
        | EventKind::Held
        | EventKind::Claimed
        | EventKind::Quarantined
        | EventKind::Snapshot
        | EventKind::RunFailed
        | EventKind::ForeignLock => None,
    };
    publish(local, kind, told);
    look
}

/// A recovery pass is due after `wait` at the latest.
fn recover_within(local: &Local, wait: Duration) {
    let at = Instant::now() + wait;
    if at < local.recover_at() {
        local.recover_by(Some(at));
    }
}

fn publish(local: &Local, kind: EventKind, told: LoggedEvent) {
    let LoggedEvent { pod: Some(pod), incarnation, reason, run, .. } = told else { return };
    let event = match (kind, run) {
        (EventKind::Joined, _) => PodEvent::Joined { pod, incarnation },
        (EventKind::Draining, _) => PodEvent::Draining { pod, incarnation },
        (EventKind::Suspected, _) => PodEvent::Suspected { pod, incarnation },
        (EventKind::Evicted, _) => PodEvent::Evicted { pod, incarnation },
        (EventKind::Quarantined, Some(run)) => PodEvent::Quarantined { run, by: pod },
        (EventKind::Buried, _) => PodEvent::Buried { pod, incarnation, reason: reason.unwrap_or_default() },
        // No `PodEvent` tells of these.
        (
            EventKind::Detached
            | EventKind::Returned
            | EventKind::Held
            | EventKind::Claimed
            | EventKind::Quarantined
            | EventKind::Snapshot
            | EventKind::RunFailed
            | EventKind::ForeignLock,
            _,
        ) => return,
    };
    local.shared.member.publish(event);
}
