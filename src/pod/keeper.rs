//! The keeper: a thread of its own that holds the pod's liveness lock, pings on it, and takes it back after a loss.
//!
//! * **Authority.** The keeper alone decides whether this pod is attached, detached or past its deadline (L7).
//! * **States.** Attached: the lock is held on a live session. Detached: the session ended or went silent; the keeper
//!   tries to return while the runs go on. Given up: the deadline passed, or the row was gone. The runs are told to
//!   stop, and a new incarnation is registered. A buried incarnation never inserts its row again.
//! * **Bound.** A silent pod tells its runs to stop `self_fence` after it sent the last answered ping.
//! * **Closing.** The keeper closes a silent session only once nothing depends on its lock. The server frees the lock
//!   when it sees the close, long before the lease expires.
//! * **Failures.** The end of a session is noticed at once. A session that is up but unanswered is noticed within
//!   `ping_interval + ping_timeout`, and a blocked application runtime within `stall_after`.
//! * **Not promised.** If a session is *ended* while the pod lives, a peer may claim a run before the run stops. Then
//!   the fence protects every write.
//!
//! The thread has its own runtime, so neither a blocked application nor a busy pool can starve it.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use super::boot::{self, Booted, Identity};
use super::local::{Away, LivenessLock, Local};
use super::shared::Shared;
use super::{sweeper, watcher};
use crate::backoff::Backoff;
use crate::config::{OnDetach, RECONNECT_BACKOFF_MIN};
use crate::error::{Error, ErrorKind, Result};
use crate::id::Incarnation;
use crate::membership::PodEvent;
use crate::membership::clock;
use crate::meters;
use crate::pg::errors;
use crate::pg::errors::refused;
use crate::pg::session::{Backend, Opener, Session};
use crate::protocol::Moment;
use crate::protocol::cause::{self, Cause, Loss};
use crate::protocol::deadline::{Deadline, RuntimeWatch};
use crate::protocol::stall::{self, Moved};
use crate::runs::StopReason;
use crate::store::locks;
use crate::store::migrate::Policy;
use crate::store::pods::{self, Returned};
use crate::store::role::Role;

/// One of this many pings asks the server whether the lock is really held. More often costs the server work; more
/// rarely, a lost lock is noticed later.
const CHECK_EVERY: u32 = 5;
/// How many former backends of ours a return ends, if the server still has them. Older ones are forgotten; their
/// sessions end with their lease. Fewer: after a burst of broken connections, the pod waits for the lease of a session
/// that it forgot. More: the statement that ends them is longer.
const FORMER_BACKENDS: usize = 8;
/// The shortest time between two ticks of the keeper. With the shortest leases, ticks would follow so fast that they
/// only cost processor time. Longer: the deadline (L7) is seen later.
const SHORTEST_TICK: Duration = Duration::from_millis(20);

/// Starts the thread. The result of the boot comes through `booted`. If nobody waits for it any more, the boot is
/// undone.
pub(crate) fn spawn(
    shared: &Arc<Shared>,
    opener: Opener,
    identity: Identity,
    policy: Policy,
    booted: oneshot::Sender<Result<()>>,
) -> Result<()> {
    let for_thread = Arc::clone(shared);
    let thread = std::thread::Builder::new()
        .name("podlock-keeper".to_owned())
        .spawn(move || {
            let _ending = Ending(Arc::clone(&for_thread));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => {
                    runtime.block_on(live(&for_thread, opener, identity, policy, booted));
                    // A name resolution in progress must not delay the end.
                    runtime.shutdown_background();
                }
                Err(e) => {
                    let error = unsupported("runtime", e);
                    // If nobody waits, nobody wants the pod any more.
                    let _ = booted.send(Err(error));
                }
            }
        })
        .map_err(|e| unsupported("thread", e))?;
    *shared.keeper() = Some(thread);
    Ok(())
}

fn unsupported(what: &str, cause: std::io::Error) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the keeper's {what} could not be made: {cause}"))
        .state("nothing was registered")
        .help("see the limits on threads, memory and open files of the process")
        .caused_by(cause)
}

/// Reports on drop that the thread has ended, even after a panic.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.member.set_stopped();
        self.0.member.root.cancel();
        // After a clean stop no runs are left. After a panic here, no session holds the lock for them any more.
        self.0.engine.stop_all_runs(StopReason::SelfFenced);
        self.0.engine.registry.abort_all();
        self.0.ended.cancel();
    }
}

async fn live(
    shared: &Arc<Shared>,
    opener: Opener,
    identity: Identity,
    policy: Policy,
    mut booted: oneshot::Sender<Result<()>>,
) {
    let outcome = tokio::select! {
        biased;
        () = booted.closed() => return,
        () = shared.member.root.cancelled() => return,
        outcome = boot::boot(Arc::clone(shared), opener, &identity, policy) => outcome,
    };
    let Booted { local, liveness, control, watch } = match outcome {
        Ok(booted) => booted,
        Err(e) => {
            let _ = booted.send(Err(e));
            return;
        }
    };
    if booted.send(Ok(())).is_err() {
        return;
    }
    let keeper = Keeper::new(&local, identity);
    tokio::join!(keeper.run(liveness), sweeper::run(&local, control), watcher::run(&local, watch));
}

/// Why the lock is no longer held.
enum LivenessEnd {
    Stop,
    Lost(Loss, String),
    RuntimeBlocked,
    RowGone,
    Fatal(Error),
}

/// How the lock was lost, as a failed ping shows it.
fn loss_of(session: &Session, error: &Error) -> Loss {
    match error.kind() {
        _ if session.has_ended() => Loss::Ended,
        ErrorKind::Timeout => Loss::Unanswered,
        ErrorKind::SessionLost => Loss::NotHeld,
        _ => Loss::Ended,
    }
}

struct Keeper<'a> {
    local: &'a Local,
    shared: &'a Shared,
    identity: Identity,
    deadline: Cell<Deadline>,
    former: RefCell<Vec<Backend>>,
    /// A silent session that is not closed yet.
    silent: RefCell<Option<Session>>,
    /// The last evicted incarnation for which this pod has stayed away.
    stayed_away: Cell<Option<Incarnation>>,
    /// Why the lock was lost. `None` while it is held.
    cause: Cell<Option<Cause>>,
    /// How long this process itself was stopped since the last answered ping.
    asleep: Cell<Duration>,
}

impl<'a> Keeper<'a> {
    fn new(local: &'a Local, identity: Identity) -> Self {
        let shared = &*local.shared;
        let deadline = Deadline::new(shared.member.answered(), shared.member.settings.self_fence);
        Self {
            local,
            shared,
            identity,
            deadline: Cell::new(deadline),
            former: RefCell::default(),
            silent: RefCell::default(),
            stayed_away: Cell::new(None),
            cause: Cell::new(None),
            asleep: Cell::new(Duration::ZERO),
        }
    }

    /// Holds, loses and regains the lock until the pod stops.
    async fn run(&self, liveness: Session) {
        let mut liveness = liveness;
        loop {
            let (cause, blocked) = match self.hold(&liveness).await {
                LivenessEnd::Stop => {
                    self.say_why_it_ends(&liveness).await;
                    self.local.lock.send_replace(None);
                    liveness.close().await;
                    return;
                }
                LivenessEnd::Fatal(e) => {
                    self.local.lock.send_replace(None);
                    self.shared.fail(&e);
                    self.say_why_it_ends(&liveness).await;
                    return;
                }
                LivenessEnd::RowGone => {
                    self.note_loss(Loss::RowGone);
                    // The session is sound; only the incarnation is over. It must be given up before a new one may
                    // replace it, even under the same lock.
                    self.give_up(StopReason::Fenced);
                    ("the pod's row is gone from the roster".to_owned(), false)
                }
                LivenessEnd::Lost(loss, cause) => {
                    self.note_loss(loss);
                    (cause, false)
                }
                LivenessEnd::RuntimeBlocked => {
                    self.note_loss(Loss::RuntimeBlocked);
                    // Both locks are free as soon as the sessions end, so the runs are told first.
                    if self.shared.member.settings.on_detach == OnDetach::Cancel {
                        self.give_up(StopReason::SelfFenced);
                    }
                    // The cause is written now: if the runtime never runs again, nobody can write it later.
                    self.write_cause(&liveness, Cause::RuntimeBlocked).await;
                    (
                        format!(
                            "the application's runtime ran no task for {:?}",
                            self.shared.member.settings.stall_after
                        ),
                        true,
                    )
                }
            };
            self.detach(&liveness, &cause);
            // A session that is only silent may still hold the lock on the server.
            self.keep(Some(liveness).filter(|_| !blocked));
            if blocked && !self.stay_away().await {
                return;
            }
            match self.regain(&cause).await {
                Some(session) => liveness = session,
                None => return,
            }
        }
    }

    /// Holds the lock and pings until something ends the session or the pod.
    async fn hold(&self, session: &Session) -> LivenessEnd {
        let settings = &self.shared.member.settings;
        let tick = settings.hold_probe_interval.min(settings.ping_interval / 4).max(SHORTEST_TICK);
        let mut ticks = tokio::time::interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut runtime = RuntimeWatch::new(clock::now(), self.pulse(), tick);
        let mut next_ping = clock::now();
        let mut pings = 0_u32;
        // Drops a notification that was about the previous incarnation.
        let _ = self.shared.row_gone.notified().now_or_never();
        loop {
            let before = clock::now();
            let noticed = tokio::select! {
                biased;
                () = self.shared.member.root.cancelled() => return LivenessEnd::Stop,
                cause = session.ended() => Some(LivenessEnd::Lost(Loss::Ended, cause.to_string())),
                () = self.shared.row_gone.notified() => Some(LivenessEnd::RowGone),
                _ = ticks.tick() => None,
            };
            let now = clock::now();
            self.note_sleep(now.saturating_sub(before), tick);
            if let Some(end) = noticed {
                return end;
            }
            // Only a process that was itself stopped can find its deadline passed here. The server may have freed the
            // lock meanwhile, even if the socket looks healthy.
            if self.deadline.get().has_passed(now) {
                let cause = "the pod itself was frozen past its deadline".to_owned();
                return LivenessEnd::Lost(Loss::Unanswered, cause);
            }
            if runtime.look(now, self.pulse()) >= settings.stall_after {
                return LivenessEnd::RuntimeBlocked;
            }
            if now < next_ping {
                continue;
            }
            next_ping = now + settings.ping_interval;
            pings = pings.wrapping_add(1);
            let sent = clock::now();
            let pinged = self.ping(session, pings.is_multiple_of(CHECK_EVERY)).await;
            self.note_sleep(clock::now().saturating_sub(sent), settings.ping_timeout);
            match pinged {
                Ok(()) => {
                    meters::took(meters::LEASE_ROUND_TRIP, clock::now().saturating_sub(sent));
                    self.answered(sent);
                }
                Err(e) if e.kind() == ErrorKind::PooledLock => return LivenessEnd::Fatal(e),
                Err(e) => {
                    // A ping may fail a moment before the session's driver says why the connection ended.
                    let ended = async { if e.is_session_lost() { Some(session.ended().await) } else { None } };
                    let cause = tokio::time::timeout(SHORTEST_TICK, ended).await.ok().flatten();
                    let cause = cause.map_or_else(|| e.to_string(), |cause| cause.to_string());
                    return LivenessEnd::Lost(loss_of(session, &e), cause);
                }
            }
        }
    }

    async fn ping(&self, session: &Session, check: bool) -> Result<()> {
        // The limit never passes the deadline: a later reply is useless.
        let left = self.deadline.get().at().saturating_sub(clock::now());
        let limit = self.shared.member.settings.ping_timeout.min(left);
        let checked = if check {
            match locks::ping_and_check(session, self.local.keys.lock, limit).await {
                // The server lacks a resource, such as room in its lock table. A session that answers still has its
                // lock.
                Err(e) if refused(&e) && e.is_transient() => {
                    tracing::warn!(
                        target: "podlock", event = "ping_refused", pod = %self.shared.member.pod_id, error = %e,
                        "the server could not say whether the lock is held; it will be asked again"
                    );
                    None
                }
                checked => Some(checked?),
            }
        } else {
            None
        };
        let (pid, holds) = match checked {
            Some(checked) => checked,
            None => (session.ping(limit).await?, true),
        };
        let own = session.backend().pid;
        if pid != own {
            let evidence = format!("the liveness session was answered by backend {pid}, and its own is {own}");
            return Err(errors::pooled(&evidence).state("the pod ends, and its runs are told to stop"));
        }
        if !holds {
            return Err(Error::new(ErrorKind::SessionLost, format!("backend {own} no longer holds the pod's lock"))
                .help("nothing by hand: the pod takes it back; see who ends or resets its session"));
        }
        Ok(())
    }

    fn answered(&self, sent: Moment) {
        let mut deadline = self.deadline.get();
        deadline.answered(sent);
        self.deadline.set(deadline);
        self.shared.member.note_answered(sent);
        self.asleep.set(Duration::ZERO);
    }

    /// Notes a wait of at most `limit` that took `took`. During the difference, this process itself was stopped.
    fn note_sleep(&self, took: Duration, limit: Duration) {
        self.asleep.set(self.asleep.get() + took.saturating_sub(limit));
    }

    fn note_loss(&self, loss: Loss) {
        self.cause.set(Some(cause::of_loss(loss, self.asleep.get(), self.shared.member.settings.self_fence)));
    }

    /// Writes the cause of an end that is neither a clean stop nor a loss: the pod failed, or its service dropped it.
    async fn say_why_it_ends(&self, liveness: &Session) {
        if self.shared.failure().is_some() {
            self.write_cause(liveness, Cause::Failed).await;
        } else if !self.shared.member.is_draining() {
            self.write_cause(liveness, Cause::Dropped).await;
        }
    }

    /// Writes why this incarnation ends, while it still holds its lock. The time limit is short, because the runs were
    /// told to stop and other pods wait for the lock.
    async fn write_cause(&self, liveness: &Session, cause: Cause) {
        let limit = self.shared.member.settings.hold_probe_interval;
        if let Err(e) = pods::note_cause(liveness, self.shared.member.incarnation(), cause, limit).await {
            tracing::debug!(
                target: "podlock", event = "cause_unwritten", pod = %self.shared.member.pod_id, cause = cause.as_str(),
                error = %e,
                "could not record why this incarnation ends"
            );
        }
    }

    /// Keeps a silent session open, or none.
    fn keep(&self, silent: Option<Session>) {
        self.local.liveness_is_kept.set(silent.is_some());
        self.silent.replace(silent);
    }

    /// Whether a silent session may still hold the liveness lock at the server of `session`. After a failover it does
    /// not: its lock is on another server. Then this pod need not wait for its witness, whose session may not even have
    /// noticed yet that the old server is gone.
    fn may_hold_the_lock_at(&self, session: &Session) -> bool {
        self.silent.borrow().as_ref().is_some_and(|silent| silent.shares_server_with(session))
    }

    /// Closes a silent session once it has ended or the runs were told to stop.
    fn let_go_if_due(&self) {
        let ended = self.silent.borrow().as_ref().map(Session::has_ended);
        if ended.is_some_and(|ended| ended || self.local.may_let_go()) {
            self.keep(None);
        }
    }

    fn detach(&self, liveness: &Session, cause: &str) {
        self.local.lock.send_replace(None);
        self.shared.member.set_detached();
        meters::gauge(meters::ATTACHED, 0);
        metrics::counter!(meters::DETACHES).increment(1);
        self.remember(liveness.backend());
        self.shared.member.publish(PodEvent::Detached);
        tracing::warn!(
            target: "podlock", event = "detached", pod = %self.shared.member.pod_id,
            incarnation = %self.shared.member.incarnation(), cause,
            "lost the liveness session; trying to come back"
        );
    }

    fn remember(&self, backend: Backend) {
        let mut former = self.former.borrow_mut();
        former.push(backend);
        let surplus = former.len().saturating_sub(FORMER_BACKENDS);
        former.drain(..surplus);
    }

    /// Opens no session until the application's runtime runs again. Returns `false` if the pod stops.
    async fn stay_away(&self) -> bool {
        self.local.away.send_replace(Some(Away::RuntimeBlocked));
        let blocked_at = self.pulse();
        let back = async {
            while self.pulse() == blocked_at {
                tokio::time::sleep(self.shared.member.settings.hold_probe_interval).await;
            }
        };
        let runs_again = self.beside_the_deadline(back).await.is_some();
        self.local.away.send_replace(None);
        runs_again
    }

    /// Opens no session until the application makes progress. A pod that was evicted because it stalled would
    /// otherwise get runs and stall with them. Returns `false` if the pod stops.
    async fn stay_away_until_progress(&self) -> bool {
        self.stayed_away.set(Some(self.shared.member.incarnation()));
        let before = self.shared.member.progress();
        tracing::warn!(
            target: "podlock", event = "put_out", pod = %self.shared.member.pod_id,
            incarnation = %self.shared.member.incarnation(),
            "was evicted; stays away until the application makes progress"
        );
        self.local.away.send_replace(Some(Away::Evicted));
        let moved = async {
            let began = clock::now();
            while self.shared.member.progress().since(&before) != Moved::Yes {
                if stall::was_away_for_long(clock::now().saturating_sub(began), self.shared.member.settings.lease) {
                    self.shared.member.sources.idle_all();
                }
                tokio::time::sleep(self.shared.member.settings.hold_probe_interval).await;
            }
        };
        let goes_on = self.beside_the_deadline(moved).await.is_some();
        self.local.away.send_replace(None);
        goes_on
    }

    /// Tries until the lock is held again, as the same incarnation or a new one. `None`: the pod stops.
    async fn regain(&self, cause: &str) -> Option<Session> {
        let since = clock::now();
        let mut backoff = Backoff::new(RECONNECT_BACKOFF_MIN, self.shared.member.settings.reconnect_backoff_max);
        loop {
            match self.beside_the_deadline(self.try_to_return(cause, since)).await? {
                Ok(Some(session)) => {
                    self.keep(None);
                    return Some(session);
                }
                Ok(None) => {
                    if !self.stay_away_until_progress().await {
                        return None;
                    }
                    continue;
                }
                Err(e) if e.kind() == ErrorKind::PooledLock || e.kind() == ErrorKind::KeyCollision => {
                    self.give_up(StopReason::SelfFenced);
                    self.shared.fail(&e);
                    return None;
                }
                Err(e) if e.is_name_taken() => {
                    tracing::warn!(
                        target: "podlock", event = "return_failed", pod = %self.shared.member.pod_id, error = %e,
                        "another process holds this pod's name"
                    );
                }
                // An error that does not pass by itself, such as a changed password, needs a person.
                Err(e) if !e.is_transient() => {
                    tracing::warn!(
                        target: "podlock", event = "return_failed", pod = %self.shared.member.pod_id, error = %e,
                        "not back, and it needs a hand"
                    );
                }
                Err(e) => {
                    tracing::debug!(
                        target: "podlock", event = "return_failed", pod = %self.shared.member.pod_id, error = %e,
                        "not back yet"
                    );
                }
            }
            let delay = backoff.delay();
            self.beside_the_deadline(tokio::time::sleep(delay)).await?;
        }
    }

    /// Awaits `work` and keeps the deadline (L7) meanwhile. `None`: the pod stops.
    async fn beside_the_deadline<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        let mut ticks = tokio::time::interval(SHORTEST_TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.shared.member.root.cancelled() => return None,
                _ = ticks.tick() => {
                    let passed = self.deadline.get().has_passed(clock::now());
                    if passed && self.shared.member.settings.on_detach == OnDetach::Cancel {
                        if !self.shared.member.has_given_up(self.shared.member.incarnation()) {
                            self.cause.set(self.cause.get().map(cause::past_the_deadline));
                        }
                        self.give_up(StopReason::SelfFenced);
                    }
                    self.let_go_if_due();
                }
                done = &mut work => return Some(done),
            }
        }
    }

    /// One try to return: connects, ends what is left of this pod's former sessions, waits for the lock, and checks
    /// whose row is there. `None`: the pod was evicted, and must show progress first.
    async fn try_to_return(&self, cause: &str, since: Moment) -> Result<Option<Session>> {
        let mut session = self.local.opener.open(Role::Liveness).await?;
        while self.may_hold_the_lock_at(&session) && !self.local.may_end_liveness() {
            tokio::time::sleep(SHORTEST_TICK).await;
        }
        let former = self.former.borrow().clone();
        locks::end_own_backends(&mut session, self.local.keys.lock, &former).await?;
        self.remember(session.backend());
        boot::acquire(
            &session,
            self.local.keys.lock,
            &self.shared.member.pod_id,
            self.shared.member.settings.acquire_timeout,
            boot::Beside::Nothing,
        )
        .await?;
        let held_since = clock::now();
        let incarnation = self.shared.member.incarnation();
        if !self.shared.member.has_given_up(incarnation) {
            let (pod, stated) = (&self.shared.member.pod_id, self.shared.member.settings.stated());
            let key = self.local.keys.lock;
            let mut tries = 0;
            let (sent, away, returned) = loop {
                let sent = clock::now();
                let away = sent.saturating_sub(since);
                match pods::come_back(&mut session, pod, incarnation, key, stated, cause, away).await {
                    Err(e)
                        if !self.shared.member.has_given_up(incarnation)
                            && boot::is_worth_another_try(&e, &mut tries) => {}
                    returned => break (sent, away, returned?),
                }
            };
            match returned {
                // The deadline may have passed before the reply came. Then this incarnation is over anyway.
                Returned::Here(number) if !self.shared.member.has_given_up(incarnation) => {
                    self.answered(sent);
                    self.attach_again(&session, incarnation, held_since, number, away);
                    return Ok(Some(session));
                }
                Returned::Here(_) => {}
                Returned::Gone => self.give_up(StopReason::Fenced),
            }
        }
        // An incarnation that gave itself up first may have been evicted as well.
        if self.stayed_away.get() != Some(incarnation) && pods::was_evicted(&session, incarnation).await? {
            session.close().await;
            return Ok(None);
        }
        let former = self.cause.get().map(|cause| (incarnation, cause));
        let given_up = self.shared.member.given_up();
        let sent = boot::register(self.local, &mut session, &self.identity, given_up, former, held_since).await?;
        self.cause.set(None);
        self.answered(sent);
        Ok(Some(session))
    }

    fn attach_again(&self, session: &Session, incarnation: Incarnation, since: Moment, number: i64, away: Duration) {
        self.shared.engine.registry.take_lost();
        self.shared.member.set_attached(incarnation);
        meters::gauge(meters::ATTACHED, 1);
        self.local.lock.send_replace(Some(LivenessLock { incarnation, backend: session.backend(), since }));
        self.cause.set(None);
        self.shared.member.publish(PodEvent::Returned);
        tracing::info!(
            target: "podlock", event = "returned", pod = %self.shared.member.pod_id, incarnation = %incarnation,
            session = number, away_ms = u64::try_from(away.as_millis()).unwrap_or(u64::MAX),
            "holds its lock again; no run was disturbed"
        );
        self.shared.engine.recover_now.notify_one();
        self.shared.workers.attached();
        self.shared.probe_now.notify_one();
    }

    /// Tells every run to stop, and gives up the current incarnation for good. A run that does not stop in time is
    /// aborted.
    fn give_up(&self, reason: StopReason) {
        let incarnation = self.shared.member.incarnation();
        if !self.shared.member.set_given_up(incarnation) {
            return;
        }
        // Runs that were stopped earlier, by a peer's claim, count too: the same loss stopped them.
        let runs = self.shared.engine.stop_all_runs(reason) + self.shared.engine.registry.take_lost();
        self.shared.member.publish(PodEvent::SelfFenced);
        meters::count(meters::SELF_FENCES, "reason", reason.as_str());
        tracing::warn!(
            target: "podlock", event = "self_fenced", pod = %self.shared.member.pod_id, incarnation = %incarnation,
            runs,
            reason = %reason, "gave this incarnation up and told its runs to stop"
        );
    }

    fn pulse(&self) -> u64 {
        self.shared.member.runtime_pulse.load(Ordering::Acquire)
    }
}
