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
use crate::backoff::Backoff;
use crate::error::Result;
use crate::membership::clock;
use crate::nag::Nag;
use crate::protocol::Moment;
use crate::protocol::notices::Gate;
use crate::protocol::replica::{Reader, pace};
use crate::protocol::reports;
use crate::store::workers::{self, PORTION};
use crate::timestamp::Timestamp;

/// How many rounds of a comparison follow each other at once, if the copy still differs: 3. With one, `ready` may resolve
/// on a copy that still differs. With more, constant changes keep the pod comparing.
const ROUNDS: u32 = 3;
/// The delays after failed reads: 20 ms to 2 s. A shorter maximum loads a server that refuses; a longer one delays what is
/// read after an outage.
const DELAYS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));
/// How often a lasting failure is logged: once a minute.
const SAID: Duration = Duration::from_secs(60);

/// Reads the workers of other pods, and reports those of this one.
pub(crate) struct Copying {
    registry: Arc<Registry>,
    reader: Reader,
    /// When the next read because of notices may begin: a flood of them makes few reads (L11).
    gate: Gate,
    /// The snapshot of the last read. `None`: nothing was read yet.
    seen: Option<String>,
    server: Option<Timestamp>,
    /// When the next comparison is due.
    due: Instant,
    /// When the last look at the reports that counted was made, by the pod's clock.
    counted: Option<Moment>,
    /// The most workers that a statement reads. Halved after one that failed, because it may have been too large.
    most: usize,
    nag: Nag,
}

impl Copying {
    pub(crate) fn new(registry: Arc<Registry>) -> Self {
        let (due, nag) = (Instant::now(), Nag::new(SAID));
        let (reader, gate) = (Reader::default(), Gate::default());
        Self { registry, reader, gate, seen: None, server: None, due, counted: None, most: PORTION, nag }
    }

    fn every(&self) -> Duration {
        self.registry.member.settings.worker_report_interval
    }

    /// Returns whether there was news.
    async fn round(&mut self) -> Result<bool> {
        let must_compare = &self.registry.must_compare;
        let news = if must_compare.swap(false, Ordering::AcqRel) || self.seen.is_none() || Instant::now() >= self.due {
            // It stays due if it fails.
            let is_done = self.compare_until_same().await;
            if is_done.is_err() {
                self.registry.must_compare.store(true, Ordering::Release);
            }
            is_done?
        } else {
            self.read_changes().await?
        };
        Ok(self.read_doubts().await? || news)
    }

    async fn compare_until_same(&mut self) -> Result<bool> {
        let mut news = false;
        for _ in 0..ROUNDS {
            let (is_same, found) = self.compare().await?;
            news |= found;
            if is_same {
                break;
            }
        }
        self.due = Instant::now() + self.every().mul_f64(0.9 + 0.2 * fastrand::f64());
        self.registry.compared.send_modify(|count| *count += 1);
        Ok(news)
    }

    /// Reads what has changed since the last read.
    async fn read_changes(&mut self) -> Result<bool> {
        let Registry { member, table, db, .. } = &*self.registry;
        let own = member.incarnation();
        table.publish_as(own);
        let Some(seen) = self.seen.clone() else { return Ok(false) };
        let epoch = table.read_epoch();
        let (mut after, mut snapshot, mut news) = (None, None, false);
        loop {
            let page = workers::changed(db, own, &seen, after, self.most).await?;
            // The first page's: what commits between two pages is read again.
            snapshot.get_or_insert(page.snapshot);
            news |= table.take_in(own, page.rows, page.removed, epoch);
            after = page.next;
            if after.is_none() {
                self.seen = snapshot;
                return Ok(news);
            }
        }
    }

    /// Reads once more what a read that overlapped a write of this pod has shown.
    async fn read_doubts(&mut self) -> Result<bool> {
        let Registry { member, table, db, .. } = &*self.registry;
        let own = member.incarnation();
        let epoch = table.read_epoch();
        let doubts = table.take_doubts();
        if doubts.is_empty() {
            return Ok(false);
        }
        let rows = workers::read(db, own, &doubts).await.inspect_err(|_| table.doubt(&doubts))?;
        let there: HashSet<Uuid> = rows.iter().map(|row| row.worker_id).collect();
        Ok(table.take_in(own, rows, doubts.into_iter().filter(|id| !there.contains(id)), epoch))
    }

    /// Reports, compares the copy with the store, and repairs it. Returns whether both were the same, and whether there
    /// was news.
    async fn compare(&mut self) -> Result<(bool, bool)> {
        let Registry { member, table, db, .. } = &*self.registry;
        let own = member.incarnation();
        table.publish_as(own);
        let epoch = table.read_epoch();
        let mut report = table.report(clock::now());
        report.read_to.clone_from(&self.seen);
        let overview = workers::reconcile(db, own, &report).await?;
        let now = clock::now();
        let counts = overview.is_member && reports::counts(self.counted, now, self.every());
        if counts {
            self.counted = Some(now);
        }
        table.looked(own, &overview, &report, counts);
        self.registry.note_monitor(&overview);
        if self.server.replace(overview.server).is_some_and(|before| before != overview.server) {
            // The server that was read before may have lost what this pod has read.
            self.seen = None;
        }
        let buckets = table.differing(&overview.sums);
        let mut news = false;
        if !buckets.is_empty() {
            let marks = workers::marks(db, &buckets).await?;
            let wanted = table.compare(&buckets, &marks, overview.is_member, epoch);
            for portion in wanted.chunks(self.most) {
                let rows = workers::read(db, own, portion).await?;
                news |= table.take_in(own, rows, [], epoch);
            }
        }
        self.seen = Some(overview.snapshot);
        Ok((buckets.is_empty(), news))
    }
}

impl Part for Copying {
    const NAME: &'static str = "the copy of the workers";

    async fn woken(&mut self) {
        if self.gate.due().is_none() {
            self.registry.to_read.notified().await;
            self.gate.ask(clock::now(), Duration::ZERO);
        }
        let due = self.gate.due().unwrap_or_default();
        tokio::time::sleep(due.saturating_sub(clock::now())).await;
    }

    fn period(&self) -> Option<Duration> {
        self.registry.is_used().then(|| self.due.saturating_duration_since(Instant::now()))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(DELAYS.0, DELAYS.1)
    }

    async fn work(&mut self) -> Next {
        if !self.registry.is_used() {
            return Next::Wait;
        }
        let peers = self.registry.member.peers();
        self.gate.suit(peers);
        self.gate.begin(clock::now());
        let done = self.round().await;
        let now = clock::now();
        self.gate.end(now, *done.as_ref().unwrap_or(&false));
        match done {
            Ok(news) => {
                self.nag.passed();
                self.most = (self.most * 2).min(PORTION);
                if news {
                    self.reader.stir(now);
                }
                if self.registry.table.has_doubts() {
                    return Next::Within(pace(peers));
                }
                self.reader.next(now, peers).map_or(Next::Wait, Next::Within)
            }
            Err(e) => {
                self.most = (self.most / 2).max(1);
                self.registry.failed(&mut self.nag, &e, "the copy of all workers is not up to date");
                Next::BackOff
            }
        }
    }
}
