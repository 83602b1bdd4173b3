//! The control session: it holds the witness lock, hears the other pods, and sweeps, so that nothing depends on a
//! push.

use std::cell::RefCell;
use std::time::Duration;

use tokio::time::Instant;

use super::boot;
use super::burial::{self, Trigger};
use super::hints::Hints;
use super::local::{Away, LivenessLock, Local};
use super::strangers;
use crate::background::session::{self, End, Kept};
use crate::backoff::Backoff;
use crate::config::{OnStall, RECONNECT_BACKOFF_MIN};
use crate::error::{Error, ErrorKind, Result};
use crate::membership::clock;
use crate::pg::errors::refused;
use crate::pg::session::{Backend, Session};
use crate::protocol::neighbours;
use crate::protocol::stall::{Moved, Progress, Stalled};
use crate::store::beats::{self, Beats};
use crate::store::burials::{self, RosterProbe};
use crate::store::listener::Listener;
use crate::store::locks;
use crate::store::notices::{self, Requests};
use crate::store::pods;
use crate::store::role::Role;

/// How many former backends of ours a new session ends, if the server still has them.
const FORMER_BACKENDS: usize = 8;
/// How often to check whether a silent session may be closed.
const LOOK_AT_SILENT: Duration = Duration::from_millis(20);

/// Keeps a control session until the pod stops, and sweeps on it. The boot has opened the first one.
pub(crate) async fn run(local: &Local, first: Listener) {
    let beating = Beating {
        due: Instant::now() + local.shared.member.settings.beat_interval,
        shown: local.shared.member.progress(),
    };
    let control = Control {
        local,
        first: RefCell::new(Some(first)),
        silent: RefCell::default(),
        former: RefCell::default(),
        beating: RefCell::new(beating),
    };
    session::keep(&control, &local.shared.member.root).await;
}

/// What outlives a control session.
struct Control<'a> {
    local: &'a Local,
    /// The session that the boot has opened, until it is served.
    first: RefCell<Option<Listener>>,
    /// A session that failed and is not closed yet: it may only be silent, and still hold the witness lock on the
    /// server.
    silent: RefCell<Option<Listener>>,
    /// The backends that the next session ends, if the server still has them.
    former: RefCell<Vec<Backend>>,
    beating: RefCell<Beating>,
}

/// The beats of this pod. Sessions that live shorter than `beat_interval` must not delay them: peers count how long they
/// stand still.
struct Beating {
    due: Instant,
    /// The progress at the last beat.
    shown: Progress,
}

impl Kept for Control<'_> {
    type Session = Listener;

    fn backoff(&self) -> Backoff {
        Backoff::new(RECONNECT_BACKOFF_MIN, self.local.shared.member.settings.reconnect_backoff_max)
    }

    /// A pod that is away holds no lock, so a session that is at hand or only silent is closed at once.
    async fn wanted(&self) {
        let mut away = self.local.away.subscribe();
        while away.borrow_and_update().is_some() {
            self.first.take();
            self.silent.take();
            self.local.control.set(None);
            // The sender lives as long as `local`.
            let _ = away.changed().await;
        }
        if self.first.borrow().is_none() {
            // If both sessions are lost, the liveness session comes first. A witness without it is better than none. In
            // a large fleet that lost its sessions, a witness gains nothing, and the server has enough to do.
            let mut lock = self.local.lock.subscribe();
            let lease = self.local.shared.member.settings.lease;
            let wait = if neighbours::are_all(self.local.peers()) { lease / 10 } else { lease / 2 };
            let _ = tokio::time::timeout(wait, lock.wait_for(Option::is_some)).await;
        }
    }

    async fn unwanted(&self) -> String {
        let mut away = self.local.away.subscribe();
        // The sender lives as long as `local`.
        let _ = away.changed().await;
        let why = away.borrow().map_or("the keeper asks for it", Away::as_str);
        why.to_owned()
    }

    async fn open(&self) -> Result<Listener> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let session = self.arm().await?;
        self.silent.take();
        Ok(session)
    }

    /// Without a control session, the pod has no witness lock and does not sweep.
    fn failed(&self, error: &Error) {
        let pod = &self.local.shared.member.pod_id;
        if error.is_transient() {
            tracing::debug!(
                target: "podlock", event = "control_failed", pod = %pod, error = %error, "no control session yet"
            );
        } else {
            tracing::warn!(
                target: "podlock", event = "control_failed", pod = %pod, error = %error,
                "no control session, and it needs a hand"
            );
        }
    }

    async fn serve(&self, session: &mut Listener, backoff: &mut Backoff) -> End {
        self.former.replace(vec![session.backend()]);
        End::Lost(serve(self.local, &self.beating, session, backoff).await)
    }

    async fn ended(&self, session: Listener, end: &End) {
        if matches!(end, End::Stopped) {
            return session.close().await;
        }
        self.local.control_answers.set(false);
        self.silent.replace(Some(session));
        self.let_go_if_due();
        tracing::info!(
            target: "podlock", event = "control_lost", pod = %self.local.shared.member.pod_id, cause = %end,
            "lost the control session; opening another"
        );
    }
}

impl Control<'_> {
    /// Closes a silent session once it has ended or the runs were told to stop (L7).
    fn let_go_if_due(&self) {
        let has_ended = self.silent.borrow().as_ref().is_none_or(|session| session.has_ended());
        if has_ended || self.local.may_let_go() {
            self.silent.take();
            self.local.control.set(None);
        }
    }

    /// Opens a new control session: ends the former one, takes the witness lock, and listens.
    async fn arm(&self) -> Result<Listener> {
        let local = self.local;
        let mut session = Listener::open(&local.opener, Role::Control).await?;
        loop {
            self.let_go_if_due();
            if self.silent.borrow().is_none() || local.may_end_control() {
                break;
            }
            tokio::time::sleep(LOOK_AT_SILENT).await;
        }
        let former = self.former.borrow().clone();
        locks::end_own_backends(&mut session, local.keys.witness, &former).await?;
        // Remembered before it takes the lock, so that the next session ends it if it goes silent half-way.
        self.remember(session.backend());
        let began = Instant::now();
        let mut said = false;
        while !locks::lock(&session, local.keys.witness, boot::lock_slice(&session)).await? {
            // A former backend of ours is gone after a lease.
            if !said && began.elapsed() >= local.shared.member.settings.lease {
                said = true;
                strangers::say_who_keeps_out(local, &session).await?;
            }
        }
        let last = notices::listen(&session, &local.shared.member.channel).await?;
        // The events of the time without a session are read now. After a failover the log may be shorter than before.
        local.log_read.set(local.log_read.get().min(last));
        local.control.set(Some(session.backend()));
        local.control_answers.set(true);
        Ok(session)
    }

    fn remember(&self, backend: Backend) {
        let mut former = self.former.borrow_mut();
        former.push(backend);
        let surplus = former.len().saturating_sub(FORMER_BACKENDS);
        former.drain(..surplus);
    }
}

/// Sweeps, hears and beats on one session until the session fails.
async fn serve(local: &Local, beating: &RefCell<Beating>, session: &mut Listener, backoff: &mut Backoff) -> Error {
    let mut lock = local.lock.subscribe();
    let mut warm_up = Some(Instant::now() + local.warm_up_delay());
    let mut recorded = None;
    let mut hints = Hints::of_a_new_session(local.peers_at_most());
    let mut next_sweep = Instant::now();
    // Events of the time without a control session may have been missed, so a pass of each kind runs.
    local.shared.engine.recover_now.notify_one();
    local.shared.workers.attached();
    loop {
        let ended = session.ended();
        let next_beat = beating.borrow().due;
        let hinted = hints.due().map(|due| due.saturating_sub(clock::now()));
        tokio::select! {
            biased;
            cause = ended => return Error::new(ErrorKind::SessionLost, cause.to_string()),
            () = local.shared.probe_now.notified() => next_sweep = Instant::now(),
            _ = lock.changed() => {}
            () = tokio::time::sleep_until(next_sweep) => {}
            () = tokio::time::sleep_until(next_beat), if local.lock().is_some() => {}
            () = tokio::time::sleep_until(warm_up.unwrap_or(next_sweep)), if warm_up.is_some() => {}
            () = tokio::time::sleep(hinted.unwrap_or_default()), if hinted.is_some() => {}
            // This branch is last, and due work is done in any case: a flood of notices delays nothing.
            heard = session.heard() => hints.hear(local, &heard),
        }
        let now = Instant::now();
        let own = *lock.borrow_and_update();
        let done = async {
            if warm_up.is_some_and(|due| now >= due) {
                warm_up = None;
                burial::warm_up(local, session).await?;
            }
            match hints.follow(local, session).await {
                Ok(None) => {}
                Ok(Some(by)) if neighbours::are_all(local.peers_at_most()) => {
                    next_sweep = next_sweep.min(Instant::now() + by);
                }
                Ok(Some(by)) => hints.probe.ask(clock::now(), by),
                // Beats and sweeps depend on no notice.
                Err(e) if refused(&e) => {
                    tracing::debug!(
                        target: "podlock", event = "hint_failed", pod = %local.shared.member.pod_id, error = %e,
                        "what a notice announced could not be read; a sweep reads it"
                    );
                    hints.failed();
                }
                Err(e) => return Err(e),
            }
            let Some(own) = own else {
                if now >= next_sweep {
                    session.ping(local.shared.member.settings.ping_timeout).await?;
                    next_sweep = now + sweep_delay(local);
                }
                return Ok(());
            };
            if recorded != Some(own.incarnation) {
                pods::set_control(session, own.incarnation).await?;
                recorded = Some(own.incarnation);
                next_sweep = now;
            }
            if now >= next_beat {
                let interval = local.shared.member.settings.beat_interval;
                // A beat that fails is due again soon, on this session or the next.
                beating.borrow_mut().due = now + interval / 10;
                beat(local, session, &own, beating).await?;
                beating.borrow_mut().due = now + interval;
                let beats = beats::beats(session, own.incarnation, &local.neighbours()).await?;
                local.note_attached(beats.peers.len());
                look_for_stalled(local, session, &own, &beats).await?;
                strangers::look(local, session, &own, &beats).await?;
            }
            if now >= next_sweep || hints.probe.is_due(clock::now()) {
                if now < next_sweep {
                    local.note_hint("look");
                }
                hints.probe.begin(clock::now());
                let began = Instant::now();
                if local.is_whole_due() || !probe_neighbours(local, session, &own).await? {
                    let expects_a_loss = std::mem::take(&mut hints.told_of_a_loss);
                    sweep(local, session, &own, expects_a_loss).await?;
                    local.plan_whole();
                    hints.suit(local.peers_at_most());
                }
                tell_waits(local, session).await;
                // With a long roster, a probe may take long. At most half of the time goes into probes.
                let took = if local.whole_roster().is_some() { Duration::ZERO } else { began.elapsed() };
                next_sweep = Instant::now() + sweep_delay(local).max(took);
                hints.probe.end(clock::now(), false);
                hints.after_a_probe(local);
            }
            Ok(())
        }
        .await;
        match done {
            Ok(()) => backoff.reset(),
            // The server refused a statement: unknown is not dead (L10), and the session is sound.
            Err(e) if refused(&e) => {
                tracing::warn!(
                    target: "podlock", event = "sweep_failed", pod = %local.shared.member.pod_id, error = %e,
                    "a look failed; nothing was concluded from it"
                );
                next_sweep = Instant::now() + sweep_delay(local);
                hints.failed();
            }
            Err(e) => return e,
        }
    }
}

/// Beats if the application made progress since the last beat. Otherwise records which required source stands still.
async fn beat(local: &Local, session: &Session, lock: &LivenessLock, beating: &RefCell<Beating>) -> Result<()> {
    let shared = &local.shared;
    let progress = shared.member.progress();
    let moved = progress.since(&beating.borrow().shown);
    match moved {
        Moved::Yes => {
            beats::beat(session, lock.incarnation).await?;
            beating.borrow_mut().shown = progress;
        }
        Moved::No => _ = beats::stand_still(session, lock.incarnation, None).await?,
        Moved::NotRequired(number) => {
            let source = shared.member.sources.name(number);
            if beats::stand_still(session, lock.incarnation, Some(&source)).await? {
                tracing::warn!(
                    target: "podlock", event = "standing", pod = %shared.member.pod_id, source,
                    "a required progress source stands still: this pod shows no progress"
                );
            }
        }
    }
    Ok(())
}

/// Acts on a check of the peers' beats: decide → report the suspects, and evict them if that is the policy.
async fn look_for_stalled(local: &Local, session: &Session, lock: &LivenessLock, beats: &Beats) -> Result<()> {
    let shared = &local.shared;
    let Some(own) = beats.own else { return Ok(()) };
    for stalled in local.observe_beats(own, &beats.peers) {
        let source = beats.standing.get(&stalled.incarnation).map(String::as_str);
        match tell_of_stalled(local, session, lock, &stalled, source).await {
            // A suspect that may not be evicted, such as a pod of another role, hides none of the others.
            Err(e) if refused(&e) => {
                tracing::warn!(
                    target: "podlock", event = "eviction_failed", incarnation = %stalled.incarnation,
                    by = %shared.member.pod_id, error = %e,
                    "a pod that gets nowhere was left as it is"
                );
            }
            told => told?,
        }
    }
    Ok(())
}

async fn tell_of_stalled(
    local: &Local,
    session: &Session,
    lock: &LivenessLock,
    stalled: &Stalled,
    source: Option<&str>,
) -> Result<()> {
    let (shared, settings) = (&local.shared, &local.shared.member.settings);
    let first = beats::suspect(session, &shared.member.pod_id, stalled).await?;
    if first {
        tracing::warn!(
            target: "podlock", event = "suspected", incarnation = %stalled.incarnation, by = %shared.member.pod_id,
            looks = stalled.looks, source, "a pod runs and gets nowhere"
        );
    }
    // Like a burial, an eviction is only for pods that have been up for a while themselves (L2).
    if settings.on_stall == OnStall::Evict
        && local.is_settled(lock)
        && let Some(backends) = beats::evict(session, &shared.member.pod_id, stalled).await?
    {
        tracing::warn!(
            target: "podlock", event = "evicted", incarnation = %stalled.incarnation, by = %shared.member.pod_id,
            backends, "evicted a pod that made no progress"
        );
    }
    Ok(())
}

/// How soon the next roster probe is due. It is due at the latest when the wait of an unsettled pod ends, because the
/// log promises that end (`wait_ms`).
fn sweep_delay(local: &Local) -> Duration {
    let settings = &local.shared.member.settings;
    let delay = match local.hold_delay() {
        Some(delay) => delay,
        None if local.is_report_open() || local.has_untold_dead() => local.probe_interval(),
        None => settings.jittered_sweep(fastrand::f64()),
    };
    local.take_bury_delay().map_or(delay, |left| left.min(delay)).min(settings.jittered_sweep(fastrand::f64()))
}

/// One sweep of a pod in a large fleet: probe the neighbours → report whether that was enough. `false`: the whole
/// roster must be probed now.
async fn probe_neighbours(local: &Local, session: &Session, lock: &LivenessLock) -> Result<bool> {
    let Some((probe, neighbours)) = burial::survey_neighbours(local, session, lock).await? else { return Ok(false) };
    if check_own_row(local, lock, &probe) {
        if local.must_look_at_all(lock, &probe) {
            return Ok(false);
        }
        local.note_neighbours(&probe, &neighbours);
    }
    Ok(true)
}

/// One sweep: probe the roster → decide → bury or tell → report. If a loss is expected, the burial pass probes the
/// roster itself, which saves one probe.
async fn sweep(local: &Local, session: &mut Session, lock: &LivenessLock, expects_a_loss: bool) -> Result<()> {
    if expects_a_loss && local.is_settled(lock) {
        let probe = burial::hold(local, session, lock, Trigger::Sweep, None).await?;
        check_own_row(local, lock, &probe);
        return Ok(());
    }
    let probe = burial::survey(local, session, lock, None).await?;
    if !check_own_row(local, lock, &probe) {
        return Ok(());
    }
    let decision = burial::decide(local, &probe);
    local.weigh_fleet(lock);
    if !local.is_settled(lock) {
        return burial::tell_of(local, session, lock, Trigger::Sweep, &probe, &decision).await;
    }
    if burial::to_bury(local, lock, &decision, &probe.peers).is_empty() {
        return Ok(());
    }
    burial::hold_after(local, session, lock, Trigger::Sweep, &probe, &decision).await
}

/// Records the waits that the probe showed, once for all observers. A failure delays nothing: the next sweep tries
/// again.
async fn tell_waits(local: &Local, session: &Session) {
    let waits = local.waits();
    if waits.is_empty() {
        return;
    }
    match burials::note_waits(session, &waits, &local.shared.member.pod_id).await {
        // Another session holds the log at the moment.
        Ok(None) => {}
        Ok(Some(_)) => local.note_waits_told(&waits),
        Err(e) => {
            tracing::debug!(
                target: "podlock", event = "wait_untold", pod = %local.shared.member.pod_id, error = %e,
                "a wait could not be recorded; the next look tries again"
            );
        }
    }
}

/// Checks this pod's own row. Returns `false` if the row is gone, which ends this incarnation.
fn check_own_row(local: &Local, lock: &LivenessLock, probe: &RosterProbe) -> bool {
    let Some(own) = &probe.own else {
        // A probe that began before a new registration shows the roster without the new row.
        if local.lock().is_some_and(|now| now.incarnation == lock.incarnation) {
            local.shared.row_gone.notify_one();
        }
        return false;
    };
    let requests = Requests { drain: own.drain_requested.is_some(), cordoned_by: own.cordoned_by.clone() };
    local.shared.follow(lock.incarnation, requests);
    true
}
