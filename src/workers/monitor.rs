//! The monitor of workers: one pod at a time writes which workers are inactive, and deletes what no pod needs any more.
//!
//! Each pod looks at the reports by itself, and chooses no worker that it sees as inactive. A pod that sees a worker for
//! the first time believes the column `liveness` until the owner's next report. Nothing else depends on the monitor but
//! the events and the size of the tables.

use std::sync::Arc;
use std::time::Duration;

use super::Registry;
use crate::background::part::{Next, Part};
use crate::backoff::Backoff;
use crate::error::Result;
use crate::membership::clock;
use crate::nag::Nag;
use crate::protocol::Moment;
use crate::protocol::reports;
use crate::protocol::worker::Liveness;
use crate::store::workers::{self, PORTION};

/// After how many rounds of its own, in which the monitor's rounds stand still, a pod takes over: 3, so about 3 minutes.
/// With fewer, a slow monitor is replaced while it works. With more, `liveness` in the store stays old for longer.
const STUCK: u32 = 3;
/// How many portions of old rows one round deletes at most: 20. More make a round longer; with fewer, old rows stay for
/// more rounds.
const PORTIONS: u32 = 20;
/// How many rows of each kind a portion has: 1,000. More hold their locks for longer; fewer cost statements.
const CLEARED: i64 = 1000;
/// The delays after failed rounds: from 1 s to 10 s. Nothing depends on a round.
const DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// How often a lasting failure is logged: once a minute.
const SAID: Duration = Duration::from_secs(60);

/// Looks after the liveness of workers, if no other pod does.
pub(crate) struct Monitoring {
    registry: Arc<Registry>,
    /// The monitor's looks as this pod saw them last, and in how many of its rounds they were the same.
    looks: (i64, u32),
    /// When a round last counted, by the pod's clock. Burials make rounds that do not count.
    counted: Option<Moment>,
    nag: Nag,
}

impl Monitoring {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        Self { registry, looks: (-1, 0), counted: None, nag: Nag::new(SAID) }
    }

    /// Counts a round in which the monitor's looks stood still, if about an interval has passed.
    fn count(&mut self, looks: i64) {
        let now = clock::now();
        let every = self.registry.member.settings.worker_monitor_interval;
        if looks != self.looks.0 {
            (self.looks, self.counted) = ((looks, 0), Some(now));
        } else if reports::counts(self.counted, now, every) {
            (self.looks.1, self.counted) = (self.looks.1 + 1, Some(now));
        }
    }

    async fn round(&mut self) -> Result<()> {
        let registry = Arc::clone(&self.registry);
        let Registry { member, db, table, .. } = &*registry;
        let own = member.incarnation();
        let monitor = self.registry.monitor();
        if !self.registry.is_monitor() && monitor.is_monitored {
            self.count(monitor.looks);
            if self.looks.1 < STUCK {
                return Ok(());
            }
        }
        let stuck = (self.looks.1 >= STUCK).then_some(self.looks.0);
        self.looks = (-1, 0);
        let holds = workers::hold_monitor(db, own, stuck).await?;
        self.registry.set_monitor(holds);
        if !holds {
            return Ok(());
        }
        for (liveness, due) in table.verdicts() {
            for portion in due.chunks(PORTION) {
                let noted = workers::write_liveness(db, own, &member.pod_id, liveness, portion).await?;
                table.noted(liveness, &noted);
                let written = noted.iter().filter(|noted| noted.is_new).count();
                if written > 0 {
                    report(&self.registry, liveness, written);
                }
            }
        }
        for _ in 0..PORTIONS {
            if workers::clear(db, CLEARED).await? < CLEARED {
                break;
            }
        }
        Ok(())
    }
}

fn report(registry: &Registry, liveness: Liveness, workers: usize) {
    let pod = &registry.member.pod_id;
    match liveness {
        Liveness::Inactive => tracing::warn!(
            target: "podlock", event = "workers_inactive", pod = %pod, workers,
            "their owners have not reported these workers for a while; they are not chosen"
        ),
        Liveness::Active => tracing::info!(
            target: "podlock", event = "workers_active", pod = %pod, workers, "their owners report these workers again"
        ),
    }
}

impl Part for Monitoring {
    const NAME: &'static str = "the monitor of workers";

    /// The first use of the registry wakes the first round. From then on, a round is due every
    /// `worker_monitor_interval`. A burial also wakes it, because workers may be left to delete.
    async fn woken(&mut self) {
        self.registry.to_monitor.notified().await;
    }

    fn period(&self) -> Option<Duration> {
        let every = self.registry.member.settings.worker_monitor_interval;
        self.registry.is_used().then(|| every.mul_f64(0.9 + 0.2 * fastrand::f64()))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(DELAYS.0, DELAYS.1)
    }

    async fn work(&mut self) -> Next {
        if !self.registry.is_used() || !self.registry.member.is_attached() {
            return Next::Wait;
        }
        match self.round().await {
            Ok(()) => {
                self.nag.passed();
                Next::Wait
            }
            Err(e) => {
                self.registry.failed(&mut self.nag, &e, "the liveness of workers is not written");
                Next::BackOff
            }
        }
    }
}
