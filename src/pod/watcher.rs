//! The watch session: it waits for the liveness lock of the pod's successor in the ring, so that the server pushes a
//! death.
//!
//! It holds no session lock. If it held one, a ring of holders that wait for each other would be a deadlock, and a
//! blocked backend does not notice that its client is gone. A grant is only a signal. The session releases the lock at
//! the end of the slice, and the burial proves the death again.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use tokio::time::Instant;

use super::burial::{self, Trigger};
use super::local::Local;
use crate::background::session::{self, End, Kept};
use crate::backoff::Backoff;
use crate::config::{RECONNECT_BACKOFF_MIN, SHORTEST_WATCH_SLICE, WITNESS_WAIT};
use crate::error::{Error, ErrorKind, Result};
use crate::id::Incarnation;
use crate::pg::errors::refused;
use crate::pg::facts::ServerFacts;
use crate::pg::session::Session;
use crate::protocol::neighbours;
use crate::store::burials::{self, Slice};
use crate::store::locks::Keys;
use crate::store::role::Role;

/// After a loss, the pods of a large fleet open their watch sessions within so much time for each pod. Longer delays
/// the push of deaths; shorter keeps the server busy while other pods take their locks back.
const EACH: Duration = Duration::from_millis(5);

/// Keeps a watch session until the pod stops. `first`: a session of the boot that becomes the first one. If push is off,
/// closes `first` and returns.
pub(crate) async fn run(local: &Local, first: Option<Session>) {
    if local.shared.member.settings.push {
        let watcher = Watcher { local, first: RefCell::new(first), said: Cell::new(false) };
        session::keep(&watcher, &local.shared.member.root).await;
    } else if let Some(first) = first {
        first.close().await;
    }
}

struct Watcher<'a> {
    local: &'a Local,
    /// The session of the boot, until it is the watch session.
    first: RefCell<Option<Session>>,
    /// The log says that there is no room for a watch.
    said: Cell<bool>,
}

impl Kept for Watcher<'_> {
    type Session = Session;

    fn backoff(&self) -> Backoff {
        Backoff::new(RECONNECT_BACKOFF_MIN, self.local.shared.member.settings.reconnect_backoff_max)
    }

    /// A pod without its lock concludes nothing from a watch, and needs the server for its liveness session first. A
    /// pod that is away has no lock.
    async fn wanted(&self) {
        let mut lock = self.local.lock.subscribe();
        if lock.borrow_and_update().is_some() {
            return;
        }
        // The sender lives as long as `local`.
        let _ = lock.wait_for(Option::is_some).await;
        // Whatever took the lock may have hit the whole fleet.
        tokio::time::sleep(neighbours::spread(EACH, self.local.peers(), fastrand::f64())).await;
    }

    async fn unwanted(&self) -> String {
        // The sender lives as long as `local`.
        let _ = self.local.away.subscribe().changed().await;
        "the pod is away".to_owned()
    }

    async fn open(&self) -> Result<Session> {
        let first = self.first.take();
        if let Some(mut first) = first {
            first.turn_into(&self.local.opener, Role::Watch).await?;
            return Ok(first);
        }
        self.local.opener.open(Role::Watch).await
    }

    fn failed(&self, error: &Error) {
        let pod = &self.local.shared.member.pod_id;
        if error.is_transient() {
            tracing::info!(
                target: "podlock", event = "watch_lost", pod = %pod, cause = %error,
                "lost the watch session; opening another"
            );
        } else {
            tracing::warn!(
                target: "podlock", event = "watch_failed", pod = %pod, error = %error,
                "no watch session, and it needs a hand; deaths are found by the sweep"
            );
        }
    }

    async fn serve(&self, session: &mut Session, backoff: &mut Backoff) -> End {
        match watch(self.local, session, backoff).await {
            Ok(()) => End::Done(OFF_FOR.mul_f64(0.5 + fastrand::f64())),
            Err(e) => End::Lost(e),
        }
    }

    async fn ended(&self, session: Session, end: &End) {
        match end {
            End::Lost(e) => self.failed(e),
            End::Done(_) => {
                session.close().await;
                if !self.said.replace(true) {
                    tracing::warn!(
                        target: "podlock", event = "push_off", pod = %self.local.shared.member.pod_id,
                        "the server's deadlock_timeout, or what it or auto_explain logs as slow, leaves no room for a \
                         watch of 100 ms: deaths are found by the sweep alone"
                    );
                }
            }
            End::Unwanted(_) | End::Stopped => {}
        }
    }
}

/// How long a slice may wait, so that the deadlock check, `log_lock_waits` and the log of slow statements never see
/// it. `None`: the slice would be too short to be useful.
fn slice_for(wanted: Duration, facts: ServerFacts) -> Option<Duration> {
    let mut slice = wanted.min(facts.deadlock_timeout.mul_f64(0.9));
    if let Some(logged) = facts.log_min_duration {
        slice = slice.min(logged.mul_f64(0.9));
    }
    (slice >= SHORTEST_WATCH_SLICE.min(wanted)).then_some(slice)
}

/// How often the server's settings are read again. After an administrator changes them by a reload, each slice of each
/// pod could write a line to the server's log. More often costs a round trip; more rarely lets such lines go on for
/// longer.
const SETTINGS_AGAIN: Duration = Duration::from_secs(20);

/// How long a watch without room stays off: 30 s, times a random factor between 0.5 and 1.5. Only a new session can
/// see whether there is room again, and every pod of the fleet is in the same state.
const OFF_FOR: Duration = Duration::from_secs(30);

/// How soon the watch tries again at a pod whose lock is free and that was not buried. The delay doubles up to
/// `hold_probe_interval`.
const FREE_AGAIN: Duration = Duration::from_millis(2);

/// Watches until the session is lost (an error), or the server's settings leave no room for a watch (no error).
async fn watch(local: &Local, session: &mut Session, backoff: &mut Backoff) -> Result<()> {
    let settings = &local.shared.member.settings;
    let Some(mut slice) = slice_for(settings.watch_slice, session.facts()) else { return Ok(()) };
    let mut read = Instant::now();
    let mut warm_up = Some(Instant::now() + local.warm_up_delay());
    let mut spoken = Instant::now();
    let mut failed = false;
    // A successor that is found free again and again, and the delay before the next try.
    let mut free: Option<(Incarnation, Backoff)> = None;
    loop {
        if read.elapsed() >= SETTINGS_AGAIN {
            read = Instant::now();
            let Some(again) = slice_for(settings.watch_slice, session.read_facts_again().await?) else { return Ok(()) };
            slice = again;
        }
        if warm_up.is_some_and(|due| Instant::now() >= due) {
            warm_up = None;
            burial::warm_up(local, session).await?;
        }
        let Some(successor) = local.successor() else {
            idle(local, session, &mut spoken).await?;
            continue;
        };
        let keys = Keys { lock: successor.lock_key, witness: successor.witness_key };
        let began = Instant::now();
        let watched = burials::watch_slice(session, keys, slice, WITNESS_WAIT, local.tells_of(&successor)).await;
        let (answer, version) = match watched {
            // The lock table is full, or somebody cancelled the statement. Unknown is not dead (L10), and the session
            // is sound.
            Err(e) if refused(&e) && e.is_transient() => {
                tracing::debug!(
                    target: "podlock", event = "watch_failed", pod = %local.shared.member.pod_id, error = %e,
                    "a slice of the watch failed; nothing was concluded from it"
                );
                spoken = Instant::now();
                // The slice may have been granted the lock and then failed while it told the others. So it is repeated
                // at once. If it fails again and again, it begins once per slice.
                if std::mem::replace(&mut failed, true) {
                    tokio::time::sleep_until(began + slice).await;
                }
                continue;
            }
            watched => watched?,
        };
        failed = false;
        backoff.reset();
        spoken = Instant::now();
        // In a large fleet the roster changes often, and each change concerns few pods.
        if version != local.roster_version() && neighbours::are_all(local.peers_at_most()) {
            local.shared.probe_now.notify_one();
        }
        if answer == Slice::Held {
            // A wait that ends early must not make the loop spin.
            if began.elapsed() < slice / 2 {
                tokio::time::sleep(slice / 2).await;
            }
            continue;
        }
        let granted = Instant::now();
        local.delays.note_free(successor.incarnation);
        let acted = match local.lock() {
            Some(lock) if local.is_settled(&lock) => {
                burial::hold(local, session, &lock, Trigger::Push, Some(successor)).await.map(drop)
            }
            Some(lock) => {
                let dead = (answer == Slice::BothFree).then_some(successor.incarnation);
                burial::tell(local, session, &lock, Trigger::Push, dead).await
            }
            // Detached: nothing may be concluded. The sweep probes when the pod is back.
            None => {
                tokio::time::sleep(settings.hold_probe_interval).await;
                Ok(())
            }
        };
        match acted {
            Ok(()) => {
                // The sweep continues to probe the peers that this probe left in sight.
                if local.hold_delay().is_some() {
                    local.plan_whole();
                    local.shared.probe_now.notify_one();
                }
                // The successor's lock was free, but the successor is neither buried nor in sight. Either another pod
                // is burying it now, or a transaction holds its row for an unknown time. Each slice that is granted
                // the lock may tell every pod, so the slices become rarer.
                if local.successor().is_some_and(|s| s.incarnation == successor.incarnation) {
                    if free.as_ref().is_none_or(|(who, _)| *who != successor.incarnation) {
                        free = Some((successor.incarnation, Backoff::new(FREE_AGAIN, settings.hold_probe_interval)));
                    }
                    if let Some((_, waits)) = &mut free {
                        tokio::time::sleep(waits.delay()).await;
                    }
                } else {
                    free = None;
                }
            }
            Err(e) if refused(&e) => {
                tracing::warn!(
                    target: "podlock", event = "burial_failed", pod = %local.shared.member.pod_id, error = %e,
                    "nobody was buried"
                );
                // A burial that failed late, such as a commit that had to wait for other commits, is repeated at once.
                tokio::time::sleep_until(granted + settings.hold_probe_interval).await;
            }
            Err(e) => return Err(e),
        }
    }
}

/// Waits for the roster to change while there is no peer to watch. Pings so that the session does not idle for a
/// lease.
async fn idle(local: &Local, session: &Session, spoken: &mut Instant) -> Result<()> {
    tokio::select! {
        () = local.roster_changed.notified() => Ok(()),
        cause = session.ended() => Err(Error::new(ErrorKind::SessionLost, cause.to_string())),
        () = tokio::time::sleep_until(*spoken + local.shared.member.settings.lease / 2) => {
            *spoken = Instant::now();
            session.ping(local.shared.member.settings.ping_timeout).await.map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_stays_under_what_the_server_logs_and_below_100_ms_push_is_off() {
        let ms = Duration::from_millis;
        let facts = |deadlock, log: Option<u64>| ServerFacts {
            deadlock_timeout: ms(deadlock),
            log_min_duration: log.map(ms),
            direct: true,
        };
        assert_eq!(slice_for(ms(1000), facts(1000, None)), Some(ms(900)));
        assert_eq!(slice_for(ms(1000), facts(1000, Some(500))), Some(ms(450)));
        assert_eq!(slice_for(ms(200), facts(1000, None)), Some(ms(200)));
        assert_eq!(slice_for(ms(1000), facts(1000, Some(0))), None);
        assert_eq!(slice_for(ms(1000), facts(50, None)), None);
        assert_eq!(slice_for(ms(50), facts(1000, None)), Some(ms(50)), "asked for by name");
    }
}
