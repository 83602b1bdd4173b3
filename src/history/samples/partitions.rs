//! Makes the partitions of the next days, and drops those whose samples need not be kept any more.
//!
//! Each pod asks once an hour, which costs the server a look into its catalog. What there is to do, one pod does: the others
//! find an advisory lock taken, and do not wait. Nothing depends on a round: a write that misses a partition makes it.

use std::sync::Arc;
use std::time::Duration;

use super::Samples;
use crate::background::part::{Next, Part};
use crate::backoff::Backoff;
use crate::error::Result;
use crate::membership::clock;
use crate::nag::Nag;
use crate::store::samples as statements;

/// The time between two rounds: an hour. There are two days to make a partition in, and a day to drop one.
const EVERY: Duration = Duration::from_secs(3600);
/// How soon after the start the first round comes at most, so that pods that live shortly need none.
const FIRST: Duration = Duration::from_secs(5);
/// The most partitions that a round drops: 8. A clock of the server that jumps costs at most that many in an hour, and of
/// those only what is beyond the days that stay (`studio_drop_sample_day`). With fewer, a shorter `keep_samples` frees the
/// room of a month later.
const DROPS: usize = 8;
/// How many rows of writers that have ended a round deletes at most.
const CLEARED: i64 = 1000;
/// The delays after failed rounds: 1 s to 10 min.
const DELAYS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// How often a lasting failure is logged: once an hour.
const SAID: Duration = EVERY;

/// Looks after the partitions.
pub(crate) struct Days {
    samples: Arc<Samples>,
    nag: Nag,
}

impl Days {
    pub(crate) fn new(samples: &Arc<Samples>) -> Self {
        Self { samples: Arc::clone(samples), nag: Nag::new(SAID) }
    }

    async fn round(&self) -> Result<()> {
        let Samples { db, member, .. } = &*self.samples;
        if self.samples.are_taken() {
            statements::add_days(db, 0).await?;
        }
        let keep = member.settings.keep_samples;
        if !keep.is_zero() {
            for _ in 0..DROPS {
                let done = statements::drop_day(db, keep).await?;
                if let Some(kept) = done.kept {
                    tracing::warn!(
                        target: "podlock", event = "sample_day_kept", pod = %member.pod_id, partition = kept,
                        "the samples of this day are old, and an object of the service's own depends on their table"
                    );
                }
                let Some(dropped) = done.dropped else { break };
                tracing::info!(
                    target: "podlock", event = "sample_day_dropped", pod = %member.pod_id, partition = dropped,
                    "dropped the samples of a day, which need not be kept any more"
                );
            }
        }
        statements::clear_writers(db, CLEARED).await.map(drop)
    }
}

impl Part for Days {
    const NAME: &'static str = "the keeper of sample days";

    fn first(&self) -> Next {
        let soon = if self.samples.are_taken() { self.samples.member.settings.sample_interval } else { FIRST };
        Next::Within(soon.min(FIRST).mul_f64(fastrand::f64()))
    }

    fn period(&self) -> Option<Duration> {
        Some(EVERY.mul_f64(0.75 + fastrand::f64() / 2.0))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(DELAYS.0, DELAYS.1)
    }

    async fn work(&mut self) -> Next {
        if self.samples.member.may_keep_work().is_none() {
            return Next::Within(Duration::from_secs(60));
        }
        match self.round().await {
            Ok(()) => {
                self.nag.passed();
                Next::Wait
            }
            Err(e) => {
                let pod = &self.samples.member.pod_id;
                if self.nag.failed(clock::now(), Duration::ZERO).is_some() && !e.is_transient() {
                    tracing::warn!(
                        target: "podlock", event = "sample_days_failed", pod = %pod, error = %e,
                        "partitions of samples could not be made or dropped; it is tried again"
                    );
                } else {
                    tracing::debug!(
                        target: "podlock", event = "sample_days_failed", pod = %pod, error = %e,
                        "partitions of samples could not be made or dropped; it is tried again"
                    );
                }
                Next::BackOff
            }
        }
    }
}
