//! Takes samples.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::Samples;
use super::machine::{self, Processors};
use super::sample::Sample;
use crate::background::part::{Next, Part};
use crate::id::Incarnation;
use crate::membership::clock;
use crate::nag::Nag;
use crate::protocol::Moment;
use crate::protocol::health::Measured;

/// How often the timer is set that shows the runtime's lag: 200 ms. With a longer one, a runtime that stood still for a
/// shorter time is not seen. A shorter one wakes an idle process more often.
const TICK: Duration = Duration::from_millis(200);
/// How often it is logged that samples are dropped: once a minute.
const SAID: Duration = Duration::from_secs(60);

/// What taking a sample remembers from the one before.
pub(super) struct Taker {
    processors: Processors,
    /// The incarnation of the last sample, and its number.
    last: Option<(Incarnation, i64)>,
    /// The pod stops, and has taken its last sample.
    is_done: bool,
    nag: Nag,
}

impl Taker {
    pub(super) fn new() -> Self {
        Self { processors: Processors::new(), last: None, is_done: false, nag: Nag::new(SAID) }
    }
}

impl Samples {
    /// Takes a sample now, and puts it into the queue. Waits for nothing.
    pub(super) fn take(&self) {
        self.take_with(&mut self.taker());
    }

    /// Takes the last sample of this pod. None follows it.
    pub(super) fn take_last(&self) {
        let mut taker = self.taker();
        self.take_with(&mut taker);
        taker.is_done = true;
    }

    fn taker(&self) -> MutexGuard<'_, Taker> {
        self.taker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_with(&self, taker: &mut Taker) {
        if taker.is_done {
            return;
        }
        let status = self.member.status((self.runs.running)());
        let number = match taker.last {
            Some((of, number)) if of == status.incarnation => number + 1,
            _ => 1,
        };
        taker.last = Some((status.incarnation, number));
        let memory = machine::memory();
        #[expect(clippy::cast_precision_loss, reason = "a lag needs few digits")]
        let lag_ms = self.lag.swap(0, Ordering::AcqRel) as f32 / 1e6;
        let sample = Sample {
            incarnation: status.incarnation,
            number,
            taken: clock::now(),
            phase: status.phase,
            measured: Measured {
                memory_pressure: memory.map(|memory| memory.pressure),
                cpu_usage: taker.processors.share(),
                runtime_lag_ms: Some(lag_ms),
            },
            memory_available: memory.and_then(|memory| i64::try_from(memory.available).ok()),
            running_runs: status.runs,
            gauges: self.own.gauges(),
            details: self.own.details(),
        };
        // The counters are looked at now, so that little is counted for the wrong one if the process registers again.
        self.own.counts(status.incarnation);
        self.taken.fetch_add(1, Ordering::AcqRel);
        if self.queue.push(sample) {
            taker.nag.passed();
            self.came.notify_one();
            return;
        }
        self.note_dropped(1);
        if taker.nag.failed(clock::now(), Duration::ZERO).is_some() {
            tracing::warn!(
                target: "podlock", event = "samples_dropped", pod = %self.member.pod_id, dropped = self.counts().dropped,
                "samples cannot be written for so long that the newest are dropped"
            );
        }
    }
}

/// Takes a sample each `sample_interval`, with jitter.
pub(crate) struct Sampling {
    samples: Arc<Samples>,
}

impl Sampling {
    pub(crate) fn new(samples: &Arc<Samples>) -> Self {
        Self { samples: Arc::clone(samples) }
    }
}

impl Part for Sampling {
    const NAME: &'static str = "the sampler";

    /// The first one comes within a random part of the interval. Pods that start together then sample and write at
    /// different times.
    fn first(&self) -> Next {
        let every = self.samples.member.settings.sample_interval;
        if self.samples.are_taken() { Next::Within(every.mul_f64(fastrand::f64())) } else { Next::Never }
    }

    fn period(&self) -> Option<Duration> {
        Some(self.samples.member.settings.sample_interval.mul_f64(0.95 + 0.1 * fastrand::f64()))
    }

    async fn work(&mut self) -> Next {
        self.samples.take();
        Next::Wait
    }
}

/// Measures how late the application's runtime wakes a timer.
pub(crate) struct Lag {
    samples: Arc<Samples>,
    /// When the timer was set.
    set: Moment,
}

impl Lag {
    pub(crate) fn new(samples: &Arc<Samples>) -> Self {
        Self { samples: Arc::clone(samples), set: clock::now() }
    }
}

impl Part for Lag {
    const NAME: &'static str = "the meter of the runtime's lag";

    fn first(&self) -> Next {
        if self.samples.are_taken() { Next::Wait } else { Next::Never }
    }

    fn period(&self) -> Option<Duration> {
        Some(TICK)
    }

    async fn work(&mut self) -> Next {
        let late = clock::now().saturating_sub(self.set).saturating_sub(TICK);
        self.samples.lag.fetch_max(u64::try_from(late.as_nanos()).unwrap_or(u64::MAX), Ordering::AcqRel);
        self.set = clock::now();
        Next::Wait
    }
}
