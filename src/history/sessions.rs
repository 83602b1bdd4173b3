//! The ends of sessions that their burial does not know: those that nobody recorded, and what is known of a process that
//! ended.
//!
//! A burial closes the session in its own transaction, and so does a registration that replaces it. So a session stays
//! open only if its row in the roster was deleted by something else: by hand, or by a restore of some tables. A pod finds
//! such sessions and closes them. All pods together look about once in a beat interval, however many they are.

use std::sync::Arc;
use std::time::Duration;

use crate::background::part::{Next, Part};
use crate::backoff::Backoff;
use crate::history::ProcessExit;
use crate::id::Incarnation;
use crate::membership::{Membership, clock};
use crate::meters;
use crate::nag::Nag;
use crate::pg::pool::Database;
use crate::store::sessions as statements;

/// The most sessions that one round closes: 200. More hold row locks for longer; fewer take more rounds.
const AT_ONCE: i64 = 200;
/// The delays after failed rounds: from 1 s to 30 s. Nothing depends on a round.
const DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often a lasting failure is logged: once a minute.
const SAID: Duration = Duration::from_secs(60);
/// How often a pod tries to record how the process before it ended, at most: 3 times within some seconds. A lock on the
/// row is gone by then. With more, a pod whose predecessor stopped cleanly asks again and again for nothing.
const TRIES: u32 = 3;

/// Closes sessions that nobody closed.
pub(crate) struct Repairing {
    member: Arc<Membership>,
    db: Database,
    nag: Nag,
}

impl Repairing {
    pub(crate) fn new(member: Arc<Membership>, db: Database) -> Self {
        Self { member, db, nag: Nag::new(SAID) }
    }
}

impl Part for Repairing {
    const NAME: &'static str = "the repair of sessions";

    /// A beat interval for each pod, so that the fleet looks about once in a beat interval.
    fn period(&self) -> Option<Duration> {
        let pods = u32::try_from(self.member.peers()).unwrap_or(u32::MAX).saturating_add(1);
        Some(self.member.settings.beat_interval.saturating_mul(pods).mul_f64(0.5 + fastrand::f64()))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(DELAYS.0, DELAYS.1)
    }

    async fn work(&mut self) -> Next {
        if self.member.may_keep_work().is_none() {
            return Next::Wait;
        }
        let pod = &self.member.pod_id;
        let closed = match statements::close_strays(&self.db, AT_ONCE).await {
            Ok(closed) => closed,
            Err(e) => {
                if let Some(times) = self.nag.failed(clock::now(), SAID) {
                    tracing::warn!(
                        target: "podlock", event = "session_repair_failed", pod = %pod, error = %e, times,
                        "sessions that nobody closed could not be looked for; the pod tries again"
                    );
                }
                return Next::BackOff;
            }
        };
        self.nag.passed();
        for stray in &closed {
            metrics::counter!(meters::CLOSE_FAILURES).increment(1);
            tracing::warn!(
                target: "podlock", event = "session_closed_late", pod = %stray.pod_id, incarnation = %stray.incarnation,
                by = %pod, "the incarnation is not in the roster, and nobody had recorded its end"
            );
        }
        Next::Wait
    }
}

/// Records how the process before this one ended, as far as the service or the cgroup shows it. Works once.
pub(crate) struct Former {
    member: Arc<Membership>,
    db: Database,
    /// The first incarnation of this process.
    own: Incarnation,
    exit: Option<ProcessExit>,
    tries: u32,
}

impl Former {
    pub(crate) fn new(member: Arc<Membership>, db: Database, exit: Option<ProcessExit>) -> Self {
        let own = member.incarnation();
        Self { member, db, own, exit, tries: 0 }
    }
}

impl Part for Former {
    const NAME: &'static str = "the former exit";

    fn first(&self) -> Next {
        Next::Within(Duration::ZERO)
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(DELAYS.0, DELAYS.1)
    }

    async fn work(&mut self) -> Next {
        let pod = &self.member.pod_id;
        self.tries += 1;
        let (before, exit) = (self.exit.and_then(|exit| exit.of), self.exit.map(|exit| exit.exit));
        match statements::note_former_exit(&self.db, self.own, pod, before, exit).await {
            Ok(Some((former, cause))) => {
                tracing::info!(
                    target: "podlock", event = "former_exit", pod = %pod, %former, cause,
                    "recorded how the process before this one ended"
                );
                Next::Never
            }
            // Nothing was known, or the row is locked. Only a service that knows something wants another try.
            Ok(None) if self.exit.is_none() || self.tries >= TRIES => Next::Never,
            Ok(None) => Next::BackOff,
            Err(e) if self.tries >= TRIES => {
                tracing::warn!(
                    target: "podlock", event = "former_exit_unrecorded", pod = %pod, error = %e,
                    "how the process before this one ended could not be recorded; the history does not have it"
                );
                Next::Never
            }
            Err(_) => Next::BackOff,
        }
    }
}
