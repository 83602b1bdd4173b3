//! Keeps this pod's copy of all workers up to date. A notice, or a change that was just found, makes it read what has
//! changed. Now and then it reports its own workers and compares the whole copy with the store, with one statement.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::Registry;
use crate::background::part::{Next, Part};
use crate::error::Result;
use crate::id::Incarnation;
use crate::membership::clock;
use crate::protocol::Moment;
use crate::protocol::replica::{Reader, pace};
use crate::store::workers::{self, PORTION};
use crate::timestamp::Timestamp;

/// How many rounds of a comparison follow each other at once, if the copy still differs. Workers change all the time, so
/// a difference may be new; the next reads see it.
const ROUNDS: u32 = 3;

/// Reads the workers of other pods, and reports those of this one.
pub(crate) struct Copying {
    registry: Arc<Registry>,
    reader: Reader,
    /// The snapshot of the last read. `None`: nothing was read yet, or the server is another one.
    seen: Option<String>,
    server: Option<Timestamp>,
    /// The incarnation that has reported.
    own: Option<Incarnation>,
    /// When the next comparison is due.
    due: Instant,
    /// When the last look at the reports that counted was made, by the pod's clock.
    counted: Option<Moment>,
}

impl Copying {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        let due = Instant::now();
        Self { registry, reader: Reader::default(), seen: None, server: None, own: None, due, counted: None }
    }

    fn every(&self) -> Duration {
        self.registry.member.settings.worker_report_interval
    }

    async fn round(&mut self) -> Result<()> {
        let own = self.registry.member.incarnation();
        let must_compare = self.registry.must_compare.swap(false, Ordering::AcqRel);
        if must_compare || self.seen.is_none() || self.own != Some(own) || Instant::now() >= self.due {
            for _ in 0..ROUNDS {
                if self.compare(own).await? {
                    break;
                }
            }
            self.due = Instant::now() + self.every().mul_f64(0.9 + 0.2 * fastrand::f64());
            self.registry.compared.send_modify(|count| *count += 1);
        } else {
            self.read_changes(own).await?;
        }
        self.read_doubts(own).await
    }

    /// Reads once more what a read that overlapped a write of this pod has shown.
    async fn read_doubts(&mut self, own: Incarnation) -> Result<()> {
        let Registry { table, db, .. } = &*self.registry;
        let epoch = table.read_epoch();
        let doubts = table.take_doubts();
        if doubts.is_empty() {
            return Ok(());
        }
        // They come back if the read fails.
        let rows = workers::read(db, own, &doubts).await.inspect_err(|_| table.doubt(&doubts))?;
        let there: HashSet<Uuid> = rows.iter().map(|row| row.worker_id).collect();
        table.take_in(own, rows, epoch);
        table.take_out(doubts.into_iter().filter(|id| !there.contains(id)), epoch);
        Ok(())
    }

    /// Reads what has changed since the last read.
    async fn read_changes(&mut self, own: Incarnation) -> Result<()> {
        let Registry { table, db, .. } = &*self.registry;
        let Some(seen) = self.seen.clone() else { return Ok(()) };
        let epoch = table.read_epoch();
        let (mut after, mut snapshot) = (None, None);
        loop {
            let page = workers::changed(db, own, &seen, after).await?;
            // The first page's: what commits between two pages is read again.
            snapshot.get_or_insert(page.snapshot);
            let removals = table.take_out(page.removed, epoch);
            if table.take_in(own, page.rows, epoch) || removals {
                self.reader.stir(clock::now());
            }
            after = page.next;
            if after.is_none() {
                self.seen = snapshot;
                return Ok(());
            }
        }
    }

    /// Reports, compares the copy with the store, and repairs it. Returns whether both were the same.
    async fn compare(&mut self, own: Incarnation) -> Result<bool> {
        let Registry { table, db, .. } = &*self.registry;
        let epoch = table.read_epoch();
        let mut report = table.report(clock::now(), self.every());
        report.read_to = self.seen.as_deref().and_then(|seen| seen.split(':').next()).map(str::to_owned);
        let overview = workers::reconcile(db, own, &report).await?;
        let now = clock::now();
        // A paused process must not count a burst of looks.
        let counts = overview.is_member
            && self.counted.is_none_or(|counted| now.saturating_sub(counted) >= self.every().mul_f64(0.8));
        if counts {
            self.counted = Some(now);
        }
        table.looked(own, &overview, &report, counts);
        self.registry.note_monitor(&overview);
        if self.server.replace(overview.server) != Some(overview.server) {
            // Another server, or the same one after a restart: it may have lost what this pod has read.
            self.seen = None;
        }
        let buckets = table.differing(&overview.sums);
        let is_same = buckets.is_empty();
        if !is_same {
            let marks = workers::marks(db, &buckets).await?;
            let wanted = table.compare(&buckets, &marks, epoch);
            for portion in wanted.chunks(PORTION) {
                let rows = workers::read(db, own, portion).await?;
                if table.take_in(own, rows, epoch) {
                    self.reader.stir(clock::now());
                }
            }
        }
        self.own = overview.is_member.then_some(own);
        self.seen = Some(overview.snapshot);
        Ok(is_same)
    }
}

impl Part for Copying {
    const NAME: &'static str = "the copy of the workers";

    async fn woken(&mut self) {
        self.registry.to_read.notified().await;
        self.reader.stir(clock::now());
    }

    fn period(&self) -> Option<Duration> {
        self.registry.is_used().then(|| self.due.saturating_duration_since(Instant::now()))
    }

    async fn work(&mut self) -> Next {
        if !self.registry.is_used() {
            return Next::Wait;
        }
        match self.round().await {
            Ok(()) => {
                let peers = self.registry.member.peers();
                if self.registry.table.has_doubts() {
                    return Next::Within(pace(peers));
                }
                self.reader.next(clock::now(), peers).map_or(Next::Wait, Next::Within)
            }
            Err(e) => {
                tracing::debug!(
                    target: "podlock", event = "workers_unread", pod = %self.registry.member.pod_id, error = %e,
                    "the workers of other pods could not be read; the copy stays as it is"
                );
                Next::BackOff
            }
        }
    }
}
