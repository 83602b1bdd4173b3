//! Writes the samples that wait, in batches.
//!
//! A write is one statement in a transaction of its own, and then a short one on the session's row. Both run on the pool,
//! so the liveness never waits for them. Samples leave the queue when their write was answered.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::Samples;
use super::queue::LATEST;
use super::sample::Sample;
use crate::background::part::{Next, Part};
use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind, Result};
use crate::membership::clock;
use crate::meters;
use crate::nag::Nag;
use crate::protocol::Moment;
use crate::protocol::batching::{self, MOST, Seen};
use crate::store::samples as statements;

/// The delays after failed writes: 1 s to 30 s. Shorter ones load a server that is in trouble. Longer ones let samples
/// wait after it is well again.
const DELAYS: (Duration, Duration) = (batching::SHORTEST, batching::LONGEST);
/// How long writes must fail before that is logged as a warning: longer than a failover takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a lasting failure is logged: each five minutes.
const SAID: Duration = Duration::from_secs(300);
/// How long a stop writes what is left, before it releases the pod's locks. Longer delays the next owners of runs that
/// were aborted; shorter loses the last samples if the server is slow.
const DRAIN_AT_MOST: Duration = Duration::from_secs(1);
/// The pause between two tries of a stop. It does not back off: it has a second.
const DRAIN_AGAIN: Duration = Duration::from_millis(20);

/// What writing remembers from one write to the next.
pub(super) struct Writer {
    /// How many samples the next write has at most.
    most: usize,
    /// How long to wait before the next write.
    interval: Duration,
    nag: Nag,
}

impl Writer {
    pub(super) fn new() -> Self {
        Self { most: MOST, interval: batching::SHORTEST, nag: Nag::new(SAID) }
    }
}

/// How much of what waited a write has stored.
enum Flushed {
    /// All of it, but for what came meanwhile.
    All,
    /// As many as one write may have. The next one follows at once.
    Part,
}

impl Samples {
    /// Writes one batch.
    async fn flush(&self, writer: &mut Writer) -> Result<Flushed> {
        let expired = self.queue.expire(clock::now());
        if expired > 0 {
            self.note_dropped(expired);
        }
        let batch = self.queue.batch(writer.most);
        let Some(last) = batch.last() else { return Ok(Flushed::All) };
        let began = clock::now();
        match self.store(&batch).await {
            Ok(()) => {}
            Err(e) => {
                let refused = statements::is_about_the_data(&e) && !statements::lacks_a_day(&e);
                if refused && batch.len() == 1 {
                    self.lose(&batch[0], &e);
                    return Ok(Flushed::Part);
                }
                let is_too_much = refused || e.kind() == ErrorKind::Timeout;
                writer.most = batching::next_most(batch.len(), is_too_much).min(writer.most);
                self.flushes_failed.fetch_add(1, Ordering::AcqRel);
                metrics::counter!(meters::FLUSHES_FAILED).increment(1);
                return Err(e);
            }
        }
        self.queue.written(last.incarnation, last.number);
        self.written.fetch_add(batch.len() as u64, Ordering::AcqRel);
        let is_cut = batch.len() >= writer.most && self.queue.len() > 0;
        writer.most = batching::next_most(writer.most, false);
        self.note_activity(last).await;
        let took = clock::now().saturating_sub(began);
        metrics::histogram!(meters::FLUSH_SECONDS).record(took.as_secs_f64());
        writer.interval = batching::next_interval(writer.interval, Seen { took, filled: self.queue.filled() });
        Ok(if is_cut { Flushed::Part } else { Flushed::All })
    }

    /// Stores a batch. If the day of a sample has no partition, makes it and tries again.
    async fn store(&self, batch: &[Arc<Sample>]) -> Result<()> {
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else { return Ok(()) };
        let write = || async {
            let now = clock::now();
            let names: Vec<String> = batch.iter().map(|sample| sample.phase.to_string()).collect();
            let rows: Vec<_> = batch.iter().zip(&names).map(|(sample, name)| sample.row(now, name)).collect();
            statements::write(&self.db, last.incarnation, &self.member.pod_id, last.number, &rows).await
        };
        match write().await {
            Err(e) if statements::lacks_a_day(&e) => {
                let age = clock::now().saturating_sub(first.taken).min(LATEST);
                // A young sample is of today. If it was taken just before midnight, the next try finds it older.
                let is_young = age < Duration::from_secs(60);
                let back = if is_young { 0 } else { i32::try_from(age.as_secs() / 86400).unwrap_or(0) + 1 };
                statements::add_days(&self.db, back).await?;
                write().await.map(drop)
            }
            written => written.map(drop),
        }
    }

    /// Records the activity in the session's row. If it fails, or the row is locked, the next write records it.
    async fn note_activity(&self, last: &Sample) {
        let own = last.incarnation;
        if own != self.member.incarnation() {
            return;
        }
        let counters = self.own.counts(own);
        if let Err(e) = statements::note_activity(&self.db, own, (self.runs.begun)(own), &counters).await {
            tracing::debug!(
                target: "podlock", event = "activity_unrecorded", pod = %self.member.pod_id, error = %e,
                "the session's row does not have the last activity yet"
            );
        }
    }

    /// Drops a sample that the server refuses, whatever else is written with it.
    fn lose(&self, sample: &Sample, error: &Error) {
        self.queue.written(sample.incarnation, sample.number);
        self.note_dropped(1);
        tracing::warn!(
            target: "podlock", event = "sample_refused", pod = %self.member.pod_id, number = sample.number, error = %error,
            "the server refuses this sample; it is dropped, and the others are written"
        );
    }

    fn note_failure(&self, nag: &mut Nag, error: &Error) {
        let pod = &self.member.pod_id;
        match nag.failed(clock::now(), PATIENCE) {
            Some(times) => tracing::warn!(
                target: "podlock", event = "samples_unwritten", pod = %pod, error = %error, times,
                waiting = self.queue.len(), "samples of this pod cannot be written; they wait, and it is tried again"
            ),
            None => tracing::debug!(
                target: "podlock", event = "samples_unwritten", pod = %pod, error = %error, waiting = self.queue.len(),
                "samples of this pod could not be written; they wait, and it is tried again"
            ),
        }
    }

    /// For the stop: takes a last sample and writes all that wait, for a second at most. What is left then is lost and
    /// counted.
    pub(crate) async fn drain(&self) {
        if !self.are_taken() {
            return;
        }
        self.take_last();
        let until = Instant::now() + DRAIN_AT_MOST;
        let write_all = async {
            let mut writer = self.writer.lock().await;
            loop {
                match self.flush(&mut writer).await {
                    Ok(_) if self.queue.len() == 0 => return,
                    Ok(_) => {}
                    Err(e) => {
                        self.note_failure(&mut writer.nag, &e);
                        tokio::time::sleep(DRAIN_AGAIN).await;
                    }
                }
            }
        };
        if tokio::time::timeout_at(until, write_all).await.is_ok() {
            return;
        }
        let lost = self.queue.clear();
        self.note_dropped(lost);
        tracing::warn!(
            target: "podlock", event = "samples_lost", pod = %self.member.pod_id, lost,
            "the pod stops, and its last samples could not be written in time"
        );
    }
}

/// Writes samples as long as the pod lives.
pub(crate) struct Writing {
    samples: Arc<Samples>,
    /// When the last write ended, or the pod came back.
    since: Moment,
    /// How long to wait from then on.
    interval: Duration,
}

impl Writing {
    pub(crate) fn new(samples: &Arc<Samples>) -> Self {
        Self { samples: Arc::clone(samples), since: clock::now(), interval: batching::SHORTEST }
    }

    /// Waits for a random time around `interval` from now on, so that pods do not write together.
    fn rest(&mut self, interval: Duration) -> Next {
        self.since = clock::now();
        self.interval = interval.mul_f64(0.75 + fastrand::f64() / 2.0).min(batching::LONGEST);
        Next::Wait
    }

    /// How long until the next write: counted from the later of the last write and the oldest sample.
    fn left(&self, oldest: Moment) -> Duration {
        if self.samples.queue.is_a_batch() {
            return Duration::ZERO;
        }
        (self.since.max(oldest) + self.interval).saturating_sub(clock::now())
    }
}

impl Part for Writing {
    const NAME: &'static str = "the writer of samples";

    async fn woken(&mut self) {
        loop {
            let left = self.samples.queue.oldest().map(|oldest| self.left(oldest));
            if left.is_some_and(|left| left.is_zero()) {
                return;
            }
            tokio::select! {
                () = self.samples.came.notified() => {}
                () = tokio::time::sleep(left.unwrap_or_default()), if left.is_some() => return,
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(DELAYS.0, DELAYS.1)
    }

    async fn work(&mut self) -> Next {
        let samples = Arc::clone(&self.samples);
        // Subscribed before the question, so that no change is missed.
        let changes = samples.member.status_changes();
        if !samples.member.is_attached() {
            // The database is most likely away. The pool is left to those who need it.
            changes.await;
            // All pods come back at once. They write over the longest interval.
            return self.rest(batching::LONGEST.mul_f64(fastrand::f64()));
        }
        let mut writer = samples.writer.lock().await;
        match samples.flush(&mut writer).await {
            Ok(Flushed::Part) => Next::Within(Duration::ZERO),
            Ok(Flushed::All) => {
                writer.nag.passed();
                self.rest(writer.interval)
            }
            Err(e) => {
                samples.note_failure(&mut writer.nag, &e);
                Next::BackOff
            }
        }
    }
}
