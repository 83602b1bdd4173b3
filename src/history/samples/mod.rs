//! Samples that the pod takes of itself, and how they reach the store.
//!
//! * `sampler` takes a sample each `sample_interval`, and measures how late the application's runtime wakes a timer.
//!   `machine` reads memory and processors. `gauges` has what the application adds.
//! * `queue`: samples wait here. It is bounded, and taking a sample never waits. `writer` writes them in batches.
//! * `partitions` makes the partitions of the next days, and drops the old ones.
//!
//! # A sample is stored once
//!
//! A write whose answer was lost is sent again. Its first attempt may have been stored, may still run, or may never have
//! arrived. So each incarnation numbers its samples, and has a row in `studio_sample_writers` with the last number that was
//! written. A write takes that row, which makes it wait for a former one that still runs, and stores only what comes after.
//! Both are one transaction. A unique key of the table could not do this: it would have to include `sampled_at`, which is
//! another at the second attempt; and it would cost each sample an index entry.
//!
//! An incarnation that was buried may still write its samples of before, for they are true. Its session has ended, and is
//! not changed any more.

mod gauges;
mod machine;
mod partitions;
mod queue;
mod sample;
mod sampler;
mod writer;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::Serialize;
use serde_json::Value;
use tokio::sync::Notify;

use crate::error::Result;
use crate::id::Incarnation;
use crate::membership::Membership;
use crate::meters;
use crate::pg::pool::Database;
use gauges::Own;
use queue::Queue;
use sampler::Taker;
use writer::Writer;

pub use gauges::{Counter, Gauge};
pub(crate) use partitions::Days;
pub(crate) use sampler::{Lag, Sampling};
pub(crate) use writer::Writing;

/// What became of the samples of a pod since its process started. From [`crate::Pod::samples`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SampleCounts {
    /// How many were taken.
    pub taken: u64,
    /// How many were written.
    pub written: u64,
    /// How many were lost: the queue was full, the server refused their contents, they were older than a week, or the
    /// pod ended first. Metric `podlock_samples_dropped_total`.
    pub dropped: u64,
    /// How many wait to be written.
    pub waiting: usize,
    /// How many writes failed. Their samples wait. Metric `podlock_flushes_failed_total`.
    pub flushes_failed: u64,
}

/// What the runs of a pod do: history does not know the engine of runs.
pub(crate) struct Runs {
    /// How many the pod executes.
    pub(crate) running: Box<dyn Fn() -> usize + Send + Sync>,
    /// How many an incarnation has begun.
    pub(crate) begun: Box<dyn Fn(Incarnation) -> u64 + Send + Sync>,
}

/// The samples of one pod.
pub(crate) struct Samples {
    member: Arc<Membership>,
    db: Database,
    runs: Runs,
    own: Own,
    queue: Queue,
    /// The lag of the runtime since the last sample, the worst, in nanoseconds. The lag's part raises it, a sample takes it.
    lag: AtomicU64,
    /// The part `Sampling` and the stop take samples, one after the other. Nobody holds it across an await.
    taker: Mutex<Taker>,
    /// The part `Writing` and the stop write. Whoever writes holds it, so there is one write at a time.
    writer: tokio::sync::Mutex<Writer>,
    /// A sample came: wakes the part `Writing`. `Notify` keeps one wake, and the part looks at the queue itself, so a lost
    /// one only delays the write until the next sample.
    came: Notify,
    taken: AtomicU64,
    written: AtomicU64,
    dropped: AtomicU64,
    flushes_failed: AtomicU64,
}

impl Samples {
    pub(crate) fn new(member: Arc<Membership>, db: Database, runs: Runs) -> Arc<Self> {
        Arc::new(Self {
            member,
            db,
            runs,
            own: Own::default(),
            queue: Queue::default(),
            lag: AtomicU64::new(0),
            taker: Mutex::new(Taker::new()),
            writer: tokio::sync::Mutex::new(Writer::new()),
            came: Notify::new(),
            taken: AtomicU64::new(0),
            written: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            flushes_failed: AtomicU64::new(0),
        })
    }

    /// Whether the pod takes samples.
    fn are_taken(&self) -> bool {
        !self.member.settings.sample_interval.is_zero()
    }

    pub(crate) fn gauge(&self, name: String) -> Result<Gauge> {
        self.own.gauge(name)
    }

    pub(crate) fn counter(&self, name: String) -> Result<Counter> {
        self.own.counter(name)
    }

    pub(crate) fn set_details(&self, details: Option<Value>) -> Result<()> {
        self.own.set_details(details)
    }

    pub(crate) fn counts(&self) -> SampleCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        SampleCounts {
            taken: read(&self.taken),
            written: read(&self.written),
            dropped: read(&self.dropped),
            waiting: self.queue.len(),
            flushes_failed: read(&self.flushes_failed),
        }
    }

    /// Counts samples that are lost.
    fn note_dropped(&self, samples: u64) {
        self.dropped.fetch_add(samples, Ordering::AcqRel);
        metrics::counter!(meters::SAMPLES_DROPPED).increment(samples);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::id::PodId;
    use crate::store::connections;

    /// Samples of a pod whose database does not answer.
    fn unconnected() -> Arc<Samples> {
        let config = Config::new("postgresql://nobody@127.0.0.1:1/none");
        let settings = Arc::new(config.validate().unwrap());
        let opener = connections::opener(&config, &settings, None).unwrap();
        let db = connections::pool_of_pod(&opener).unwrap();
        let member = Membership::new(PodId::new("a").unwrap(), settings, tokio::runtime::Handle::current());
        let runs = Runs { running: Box::new(|| 3), begun: Box::new(|_| 5) };
        Samples::new(member, db, runs)
    }

    /// "Emit never blocks; when full the newest sample is dropped and counted. A database away costs bounded memory."
    #[tokio::test]
    async fn without_a_database_the_queue_fills_and_then_the_newest_samples_are_dropped_and_counted() {
        let samples = unconnected();
        for _ in 0..2500 {
            samples.take();
        }
        let counts = samples.counts();
        assert_eq!((counts.taken, counts.waiting, counts.dropped, counts.written), (2500, 2000, 500, 0));
        let first: Vec<i64> = samples.queue.batch(3).iter().map(|sample| sample.number).collect();
        assert_eq!(first, [1, 2, 3], "the oldest are kept");
        let sample = Arc::clone(&samples.queue.batch(1)[0]);
        assert_eq!((sample.running_runs, sample.incarnation), (3, samples.member.incarnation()));
    }

    #[tokio::test]
    async fn a_stop_without_a_database_takes_a_second_at_most_and_counts_what_is_lost() {
        let samples = unconnected();
        samples.take();
        let began = tokio::time::Instant::now();
        samples.drain().await;
        // Ten times what it may take: a loaded machine is no failure.
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
        let counts = samples.counts();
        assert_eq!((counts.taken, counts.dropped), (2, 2));
        assert!(counts.flushes_failed > 1, "it tried again without a back-off: {counts:?}");
    }

    #[tokio::test]
    async fn the_worst_lag_since_the_last_sample_is_in_the_sample() {
        let samples = unconnected();
        samples.lag.fetch_max(250_000_000, Ordering::AcqRel);
        samples.take();
        samples.take();
        let lags: Vec<_> = samples.queue.batch(2).iter().map(|sample| sample.measured.runtime_lag_ms).collect();
        assert_eq!(lags, [Some(250.0), Some(0.0)]);
    }
}
