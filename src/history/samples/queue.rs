//! The samples that wait to be written. Taking one never waits: a full queue refuses the newest.
//!
//! The oldest stay, because they show how an outage began, and a pod that lives takes new samples anyway.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::sample::Sample;
use crate::id::Incarnation;
use crate::protocol::Moment;
use crate::protocol::batching::MOST;

/// The most samples. At the default of one each 10 s, they fit five hours without a database; at 300 ms, ten minutes.
/// More take more memory; fewer lose samples in a shorter outage.
const SAMPLES: usize = 2000;
/// The most bytes, about. Even samples with the largest gauges and details, of 14 KB, fit 48 minutes at the default.
const BYTES: usize = 4 << 20;
/// The most bytes of one write, about. A larger one would take the server long.
const WRITE_BYTES: usize = 1 << 20;
/// A sample that waited for longer than this is not written any more: 7 days. It would need a partition far back, and
/// says nothing that anybody looks for.
pub(super) const LATEST: Duration = Duration::from_secs(7 * 86400);

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    samples: VecDeque<Arc<Sample>>,
    bytes: usize,
}

impl Waiting {
    fn pop(&mut self) -> Option<Arc<Sample>> {
        let sample = self.samples.pop_front()?;
        self.bytes -= sample.bytes();
        Some(sample)
    }
}

impl Queue {
    /// Adds a sample. Returns false if the queue is full: the sample is dropped.
    pub(super) fn push(&self, sample: Sample) -> bool {
        let mut waiting = self.waiting();
        let bytes = sample.bytes();
        let fits = waiting.samples.len() < SAMPLES && waiting.bytes + bytes <= BYTES;
        if fits {
            waiting.bytes += bytes;
            waiting.samples.push_back(Arc::new(sample));
        }
        fits
    }

    pub(super) fn len(&self) -> usize {
        self.waiting().samples.len()
    }

    /// When the oldest sample was taken.
    pub(super) fn oldest(&self) -> Option<Moment> {
        self.waiting().samples.front().map(|sample| sample.taken)
    }

    /// How full it is: 0 to 1.
    pub(super) fn filled(&self) -> f64 {
        let waiting = self.waiting();
        #[expect(clippy::cast_precision_loss, reason = "both are far below 2^52")]
        let share = |part: usize, whole: usize| part as f64 / whole as f64;
        share(waiting.samples.len(), SAMPLES).max(share(waiting.bytes, BYTES))
    }

    /// Whether the samples suffice for a write of full size.
    pub(super) fn is_a_batch(&self) -> bool {
        let waiting = self.waiting();
        waiting.samples.len() >= MOST || waiting.bytes >= WRITE_BYTES
    }

    /// The oldest samples, at most `most`, all of one incarnation. They stay in the queue until they are written.
    pub(super) fn batch(&self, most: usize) -> Vec<Arc<Sample>> {
        let waiting = self.waiting();
        let Some(of) = waiting.samples.front().map(|first| first.incarnation) else { return Vec::new() };
        let mut bytes = 0;
        let fits = |sample: &&Arc<Sample>| {
            bytes += sample.bytes();
            sample.incarnation == of && (bytes <= WRITE_BYTES || bytes == sample.bytes())
        };
        waiting.samples.iter().take(most).take_while(fits).cloned().collect()
    }

    /// Removes the samples of `of` up to the number `last`, which are at the front.
    pub(super) fn written(&self, of: Incarnation, last: i64) {
        let mut waiting = self.waiting();
        while waiting.samples.front().is_some_and(|first| first.incarnation == of && first.number <= last) {
            waiting.pop();
        }
    }

    /// Removes the samples that are too old to be written. Returns how many.
    pub(super) fn expire(&self, now: Moment) -> u64 {
        let mut waiting = self.waiting();
        let mut expired = 0;
        while waiting.samples.front().is_some_and(|first| now.saturating_sub(first.taken) > LATEST) {
            waiting.pop();
            expired += 1;
        }
        expired
    }

    /// Removes all. Returns how many.
    pub(super) fn clear(&self) -> u64 {
        let waiting = std::mem::take(&mut *self.waiting());
        waiting.samples.len() as u64
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::sample::Details;
    use super::*;
    use crate::membership::Phase;
    use crate::protocol::health::Measured;

    fn sample(incarnation: Incarnation, number: i64, details: usize) -> Sample {
        Sample {
            incarnation,
            number,
            taken: Duration::from_secs(u64::try_from(number).unwrap()),
            phase: Phase::Active,
            measured: Measured::default(),
            memory_available: None,
            running_runs: 0,
            gauges: BTreeMap::new(),
            details: Some(Arc::new(Details { value: serde_json::Value::Null, bytes: details })),
        }
    }

    fn numbers(batch: &[Arc<Sample>]) -> Vec<i64> {
        batch.iter().map(|sample| sample.number).collect()
    }

    #[test]
    fn a_full_queue_drops_the_newest_and_keeps_the_oldest() {
        let (queue, own) = (Queue::default(), Incarnation::generate());
        let kept = (1..=3000).filter(|number| queue.push(sample(own, *number, 0))).count();
        assert_eq!((kept, queue.len()), (SAMPLES, SAMPLES));
        assert!(queue.filled() >= 1.0 && queue.is_a_batch());
        assert_eq!(numbers(&queue.batch(3)), [1, 2, 3]);
        queue.written(own, 2);
        assert_eq!(queue.len(), SAMPLES - 2);
        assert!(queue.push(sample(own, 3001, 0)), "there is room again");
    }

    #[test]
    fn the_bytes_are_bounded_too_and_ten_minutes_of_the_largest_samples_fit() {
        let (queue, own) = (Queue::default(), Incarnation::generate());
        let kept = (1..=3000).filter(|number| queue.push(sample(own, *number, 14 << 10))).count();
        assert!((60..SAMPLES).contains(&kept), "{kept}");
        let batch = queue.batch(MOST);
        assert!(batch.len() < kept && batch.iter().map(|s| s.bytes()).sum::<usize>() <= WRITE_BYTES);
        queue.written(own, 3000);
        assert_eq!((queue.len(), queue.waiting().bytes), (0, 0));
    }

    #[test]
    fn a_sample_larger_than_a_write_goes_alone() {
        let (queue, own) = (Queue::default(), Incarnation::generate());
        assert!(queue.push(sample(own, 1, WRITE_BYTES)) && queue.push(sample(own, 2, 0)));
        assert_eq!(numbers(&queue.batch(MOST)), [1]);
    }

    #[test]
    fn a_batch_is_of_one_incarnation_and_old_samples_expire() {
        let (queue, old, new) = (Queue::default(), Incarnation::generate(), Incarnation::generate());
        for (of, number) in [(old, 7), (old, 8), (new, 9), (new, 10)] {
            assert!(queue.push(sample(of, number, 0)));
        }
        assert_eq!(numbers(&queue.batch(MOST)), [7, 8]);
        queue.written(new, 10);
        assert_eq!(queue.len(), 4, "those of another incarnation stay");
        queue.written(old, 8);
        assert_eq!(numbers(&queue.batch(MOST)), [9, 10]);
        assert_eq!(queue.expire(Duration::from_secs(9) + LATEST), 0);
        assert_eq!(queue.expire(Duration::from_secs(10) + LATEST), 1);
        assert_eq!(queue.oldest(), Some(Duration::from_secs(10)));
    }
}
