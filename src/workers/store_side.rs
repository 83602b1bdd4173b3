//! What passes between the table and the store: what this pod writes of its own workers, what it reads of others', and
//! how the two are compared.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use super::check::HealthCheck;
use super::spec::WorkerSpec;
use super::table::{Held, Inner, Parts, Table, Written, bucket};
use crate::id::{Incarnation, PodId, WorkerId};
use crate::protocol::reports::{Seen, last_report};
use crate::protocol::worker::{Admission, Health, Liveness, Origin, Publication, admit, publication};
use crate::store::workers::{Overview, PORTION, Published, Put, Report, WorkerRow};

/// What one statement writes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) puts: Vec<Put>,
    pub(super) removed: Vec<Uuid>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.removed.is_empty()
    }

    fn ids(&self) -> impl Iterator<Item = WorkerId> {
        self.puts.iter().map(|put| put.worker_id).chain(self.removed.iter().copied()).map(WorkerId::from)
    }
}

impl Table {
    /// This process publishes under another incarnation from now on: all its workers are written again, and nothing that
    /// it wrote before counts. What it had published and has no more is removed by whoever buried the former incarnation.
    /// Returns true if that is new.
    pub(super) fn publish_as(&self, own: Incarnation) -> bool {
        let mut inner = self.lock();
        if inner.own == Some(own) {
            return false;
        }
        let is_first = inner.own.replace(own).is_none();
        let local = |inner: &Inner| -> Vec<WorkerId> {
            let is_local = |held: &&Held| held.entry.origin == Origin::Local;
            inner.workers.values().filter(is_local).map(|held| held.entry.id).collect()
        };
        let ids = local(&inner);
        for id in &ids {
            // Entries name their owner's registration.
            let Some(held) = inner.workers.get(id) else { continue };
            let (former, entry) = (held, &held.entry);
            if entry.owner == own {
                continue;
            }
            let parts = Parts {
                id: *id,
                url: Arc::clone(&entry.url),
                origin: Origin::Local,
                owner_pod: entry.owner_pod.clone(),
                owner: own,
                spec: Arc::clone(&entry.spec),
                undecoded: None,
                check: entry.check.clone(),
                bytes: former.bytes,
            };
            let mut held = parts.held(Some(former), former.seen);
            (held.own, held.probes) = (former.own, former.probes);
            (held.has_reported, held.since) = (former.has_reported, 0);
            self.put(&mut inner, held);
            if let Some(held) = inner.workers.get_mut(id) {
                self.refresh(held);
            }
        }
        inner.published.clear();
        inner.writing.clear();
        inner.doubts.clear();
        inner.dirty.extend(ids);
        if !is_first {
            self.to_probe.notify_one();
        }
        true
    }

    /// Takes what has changed of this pod's workers: at most one statement's worth. More stays for the next.
    pub(super) fn take_batch(&self) -> Batch {
        let mut inner = self.lock();
        let mut batch = Batch::default();
        while batch.puts.len() + batch.removed.len() < PORTION {
            let Some(id) = inner.dirty.pop_first() else { break };
            match publication(inner.origin(id), inner.published.contains_key(&id)) {
                Publication::Put => {
                    if let Some(held) = inner.workers.get(&id) {
                        batch.puts.push(put_of(held));
                    }
                }
                Publication::Remove => batch.removed.push(id.as_uuid()),
                Publication::Nothing => continue,
            }
            inner.writing.insert(id);
        }
        batch
    }

    /// A write has ended. Returns true if some of it must be written again.
    pub(super) fn wrote(&self, batch: &Batch, published: &Published) -> bool {
        let mut inner = self.lock();
        inner.epoch += 1;
        let epoch = inner.epoch;
        let written: HashMap<Uuid, i64> = published.written.iter().copied().collect();
        let reported: HashSet<Uuid> = batch.puts.iter().filter(|put| put.reported).map(|put| put.worker_id).collect();
        let removed: HashSet<Uuid> = published.removed.iter().copied().collect();
        let mut again = false;
        for id in batch.ids() {
            inner.writing.remove(&id);
            if let Some(mark) = written.get(&id.as_uuid()) {
                inner.published.insert(id, Written { mark: *mark, epoch });
                // A read has shown the row before this reply came.
                if inner.doubts.get(&id) == Some(&Some(*mark)) {
                    inner.doubts.remove(&id);
                }
                let is_reported = reported.contains(&id.as_uuid());
                if let Some(held) = inner.workers.get_mut(&id).filter(|_| is_reported) {
                    held.stored = Liveness::Active;
                }
            } else if removed.contains(&id.as_uuid()) {
                inner.published.remove(&id);
                if inner.doubts.get(&id) == Some(&None) {
                    inner.doubts.remove(&id);
                }
            } else {
                inner.dirty.insert(id);
                again = true;
            }
        }
        again
    }

    /// A write has failed, or was not accepted. It may have been done all the same, so each of its workers counts as
    /// published, and is written again.
    pub(super) fn not_written(&self, batch: &Batch) {
        let mut inner = self.lock();
        inner.epoch += 1;
        let epoch = inner.epoch;
        for id in batch.ids() {
            inner.writing.remove(&id);
            inner.published.entry(id).and_modify(|w| w.epoch = epoch).or_insert(Written { mark: 0, epoch });
            inner.dirty.insert(id);
        }
    }

    /// A read of the store begins now.
    pub(super) fn read_epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// Takes in rows that a read returned. Returns whether some of them were news.
    pub(super) fn take_in(&self, own: Incarnation, rows: Vec<WorkerRow>, read_epoch: u64) -> bool {
        let mut inner = self.lock();
        let mut news = false;
        for row in rows {
            news |= self.take_in_row(&mut inner, own, row, read_epoch);
        }
        news
    }

    fn take_in_row(&self, inner: &mut Inner, own: Incarnation, row: WorkerRow, read_epoch: u64) -> bool {
        let id = WorkerId::from(row.worker_id);
        let is_known = inner.published.get(&id).is_some_and(|written| written.mark == row.mark);
        if (!row.is_owned || inner.gone.contains(&row.owner)) && row.owner != own {
            return self.take_away(inner, id, read_epoch);
        }
        match admit(inner.origin(id), row.owner == own, is_known) {
            Admission::Echo => false,
            Admission::Refuse if inner.may_be_old(id, read_epoch) => {
                inner.doubts.insert(id, Some(row.mark));
                false
            }
            Admission::Refuse => self.refuse(inner, own, id, &row),
            Admission::Import => self.import(inner, id, row),
        }
    }

    /// Somebody else wrote a row of this pod, or the monitor wrote its liveness.
    fn refuse(&self, inner: &mut Inner, own: Incarnation, id: WorkerId, row: &WorkerRow) -> bool {
        let Some(held) = inner.workers.get_mut(&id) else {
            // This pod has removed the worker, and the row is there again.
            self.note_foreign(id, &row.owner_pod, "a row of a worker that this pod has removed");
            inner.published.insert(id, Written { mark: row.mark, epoch: inner.epoch });
            self.changed(inner, id);
            return true;
        };
        let put = put_of(held);
        let is_as_written = row.owner == own && row.url == put.url && row.health == put.health;
        let stored = Liveness::parse(&row.liveness).unwrap_or(Liveness::Inactive);
        if is_as_written && stored != held.stored {
            held.stored = stored;
            inner.published.insert(id, Written { mark: row.mark, epoch: inner.epoch });
            return false;
        }
        self.note_foreign(id, &row.owner_pod, "a row that somebody else wrote");
        self.changed(inner, id);
        true
    }

    fn note_foreign(&self, id: WorkerId, by: &str, what: &str) {
        tracing::warn!(
            target: "podlock", event = "worker_refused", pod = %self.pod, worker = %id, owner_pod = by,
            "refused {what}: a worker is written by the pod that registered it; its own state is published again"
        );
    }

    /// The workers to read once more, if no write of them is under way.
    pub(super) fn take_doubts(&self) -> Vec<Uuid> {
        let mut inner = self.lock();
        let settled = |id: &WorkerId| !inner.dirty.contains(id) && !inner.writing.contains(id);
        let ids: Vec<WorkerId> = inner.doubts.keys().filter(|id| settled(id)).copied().take(PORTION).collect();
        for id in &ids {
            inner.doubts.remove(id);
        }
        ids.iter().map(WorkerId::as_uuid).collect()
    }

    /// They could not be read, and must be.
    pub(super) fn doubt(&self, ids: &[Uuid]) {
        self.lock().doubts.extend(ids.iter().map(|id| (WorkerId::from(*id), None)));
    }

    pub(super) fn has_doubts(&self) -> bool {
        !self.lock().doubts.is_empty()
    }

    /// Takes in what was removed. Returns whether some of it was news.
    pub(super) fn take_out(&self, removed: impl IntoIterator<Item = Uuid>, read_epoch: u64) -> bool {
        let mut inner = self.lock();
        let mut news = false;
        for id in removed {
            news |= self.take_away(&mut inner, WorkerId::from(id), read_epoch);
        }
        news
    }

    fn take_away(&self, inner: &mut Inner, id: WorkerId, read_epoch: u64) -> bool {
        match inner.origin(id) {
            None => false,
            Some(Origin::Mesh) => self.take(inner, id).is_some(),
            Some(Origin::Local) if inner.may_be_old(id, read_epoch) => {
                inner.doubts.insert(id, None);
                false
            }
            // The local claim wins.
            Some(Origin::Local) => {
                self.note_foreign(id, "?", "the removal of a worker of this pod");
                self.changed(inner, id);
                true
            }
        }
    }

    fn import(&self, inner: &mut Inner, id: WorkerId, row: WorkerRow) -> bool {
        let former = inner.workers.get(&id);
        if former.is_some_and(|held| held.mark == row.mark) {
            return false;
        }
        let (mark, since, has_reported) = (row.mark, row.since_report, row.reported_at.is_some());
        let (reported_at, hint) = (row.reported_at, Health::parse(&row.health));
        let stored = Liveness::parse(&row.liveness).unwrap_or(Liveness::Inactive);
        let owner = inner.reports.get(&row.owner).copied();
        let report = last_report(has_reported, since, owner, inner.unprobed.contains(&id));
        // A worker that is new here is as the monitor calls it. Later, only its owner's reports count.
        let mut seen = match former.filter(|f| f.entry.owner == row.owner) {
            Some(former) => former.seen,
            None => Seen::first(report, stored == Liveness::Inactive && has_reported),
        };
        seen.look(report, false);
        let parts = self.parts(id, row);
        if !former.is_some_and(|f| is_same(&f.entry, &parts)) {
            let mut held = parts.held(former, seen);
            if let Some(former) = former.filter(|f| f.entry.check == held.entry.check) {
                (held.own, held.probes) = (former.own, former.probes);
            }
            held.hint = hint;
            held.entry.state.set_health(held.health());
            self.put(inner, held);
            self.to_probe.notify_one();
        }
        let Some(held) = inner.workers.get_mut(&id) else { return false };
        (held.mark, held.hint, held.has_reported, held.since) = (mark, hint, has_reported, since);
        (held.seen, held.stored) = (seen, stored);
        held.entry.state.set_reported(reported_at);
        self.refresh(held);
        true
    }

    fn parts(&self, id: WorkerId, row: WorkerRow) -> Parts {
        let raw = row.spec.unwrap_or(Value::Null);
        let bytes = raw.to_string().len();
        let refused = |what: &str, why: &dyn std::fmt::Display| {
            tracing::warn!(
                target: "podlock", event = "worker_undecoded", pod = %self.pod, worker = %id, url = row.url,
                owner_pod = row.owner_pod, error = %why,
                "imported as not ready: its {what} does not decode"
            );
        };
        let spec = WorkerSpec::decode(raw.clone()).map_err(|why| refused("spec", &why));
        let check =
            row.health_check.filter(|check| !check.is_null()).map(|check| HealthCheck::from_json(&check)).transpose();
        let check = check.map_err(|why| refused("health check", &why));
        let decodes = spec.is_ok() && check.is_ok();
        Parts {
            id,
            url: row.url.clone().into(),
            origin: Origin::Mesh,
            owner_pod: PodId::lossy(&row.owner_pod),
            owner: row.owner,
            spec: Arc::new(spec.unwrap_or_default()),
            undecoded: (!decodes).then_some(raw),
            check: check.unwrap_or_default().map(Arc::new),
            bytes,
        }
    }

    /// What this pod reports. A worker counts as probed if a probe of it has ended lately, by this process's clock.
    pub(super) fn report(&self, now: crate::protocol::Moment, every: std::time::Duration) -> Report {
        let inner = self.lock();
        let mut report = Report::default();
        for (id, held) in inner.workers.iter().filter(|(_, held)| held.entry.origin == Origin::Local) {
            report.reports = true;
            let Some(check) = &held.entry.check else { continue };
            let lately = every.max(check.interval_of_probes() + check.time_limit());
            if held.probes.last.is_none_or(|last| now.saturating_sub(last) > lately) {
                report.unprobed.push(id.as_uuid());
                if !inner.unprobed.contains(id) {
                    report.newly.push(id.as_uuid());
                }
            }
        }
        report
    }

    /// Takes in the reports of all pods. `counts`: enough time has passed since the last look that counted.
    pub(super) fn looked(&self, own: Incarnation, overview: &Overview, report: &Report, counts: bool) {
        let mut inner = self.lock();
        inner.epoch += 1;
        let epoch = inner.epoch;
        for (id, mark) in &overview.kept {
            inner.published.insert(WorkerId::from(*id), Written { mark: *mark, epoch });
        }
        inner.reports.clone_from(&overview.reports);
        inner.unprobed = overview.unprobed.iter().map(|id| WorkerId::from(*id)).collect();
        // The statement's snapshot is from before its own report.
        let is_own = |id: &WorkerId| inner.workers.get(id).is_some_and(|held| held.entry.origin == Origin::Local);
        let others: HashSet<WorkerId> = inner.unprobed.iter().filter(|id| !is_own(id)).copied().collect();
        inner.unprobed = others;
        inner.unprobed.extend(report.unprobed.iter().map(|id| WorkerId::from(*id)));
        if let Some(own_report) = overview.own_report {
            inner.reports.insert(own, own_report);
            for id in &report.newly {
                if let Some(held) = inner.workers.get_mut(&WorkerId::from(*id)) {
                    held.since = held.since.max(own_report - 1);
                }
            }
        }
        let ids: Vec<WorkerId> = inner.workers.keys().copied().collect();
        for id in ids {
            let Some(report) = inner.workers.get(&id).map(|held| inner.report_of(held)) else { continue };
            if let Some(held) = inner.workers.get_mut(&id) {
                held.seen.look(report, counts);
                self.refresh(held);
            }
        }
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!("podlock_worker_bytes").set(inner.bytes as f64);
    }

    /// The buckets in which this copy differs from the store.
    pub(super) fn differing(&self, sums: &BTreeMap<i32, i64>) -> Vec<i32> {
        let inner = self.lock();
        let mut own = BTreeMap::<i32, i64>::new();
        let imports = inner.workers.values().filter(|held| held.entry.origin == Origin::Mesh);
        let imports = imports.map(|held| (held.entry.id, held.mark));
        let published = inner.published.iter().map(|(id, written)| (*id, written.mark));
        for (id, mark) in imports.chain(published) {
            *own.entry(bucket(id.as_uuid())).or_default() ^= mark;
        }
        let sum = |sums: &BTreeMap<i32, i64>, bucket: i32| sums.get(&bucket).copied().unwrap_or(0);
        (0..256).filter(|bucket| sum(&own, *bucket) != sum(sums, *bucket)).collect()
    }

    /// Compares the copy with the marks of these buckets. Takes out what the store does not have, and returns the workers
    /// to read: removals come before backfills.
    pub(super) fn compare(&self, buckets: &[i32], marks: &BTreeMap<Uuid, i64>, read_epoch: u64) -> Vec<Uuid> {
        let mut inner = self.lock();
        let here = |id: &WorkerId| buckets.binary_search(&bucket(id.as_uuid())).is_ok();
        let lost = |id: &WorkerId| here(id) && !marks.contains_key(&id.as_uuid());
        let imports = inner.workers.values().filter(|held| held.entry.origin == Origin::Mesh);
        let absent: Vec<WorkerId> = imports.map(|held| held.entry.id).filter(|id| lost(id)).collect();
        for id in absent {
            self.take(&mut inner, id);
        }
        let unpublished: Vec<WorkerId> = inner.published.keys().copied().filter(|id| lost(id)).collect();
        for id in unpublished {
            if inner.may_be_old(id, read_epoch) {
                continue;
            }
            inner.published.remove(&id);
            self.take_away(&mut inner, id, read_epoch);
        }
        let known = |id: &WorkerId| match inner.workers.get(id) {
            Some(held) if held.entry.origin == Origin::Mesh => Some(held.mark),
            _ => inner.published.get(id).map(|written| written.mark),
        };
        marks.iter().filter(|(id, mark)| known(&WorkerId::from(**id)) != Some(**mark)).map(|(id, _)| *id).collect()
    }

    /// The workers whose liveness in the store is not what this pod sees: those to call inactive, and those to call
    /// active. The monitor writes them.
    pub(super) fn verdicts(&self) -> [(Liveness, Vec<(Uuid, Incarnation)>); 2] {
        let inner = self.lock();
        [Liveness::Inactive, Liveness::Active].map(|liveness| {
            let is_due = |held: &&Held| held.entry.state.liveness() == liveness && held.stored != liveness;
            let of = |held: &Held| (held.entry.id.as_uuid(), held.entry.owner);
            (liveness, inner.workers.values().filter(is_due).map(of).collect())
        })
    }

    /// The monitor wrote the liveness of these workers, or found it written.
    pub(super) fn noted(&self, liveness: Liveness, workers: &[(Uuid, Incarnation)]) {
        let mut inner = self.lock();
        for (id, _) in workers {
            if let Some(held) = inner.workers.get_mut(&WorkerId::from(*id)) {
                held.stored = liveness;
            }
        }
    }
}

fn put_of(held: &Held) -> Put {
    Put {
        worker_id: held.entry.id.as_uuid(),
        url: held.entry.url.to_string(),
        health: held.health().as_str(),
        spec: held.entry.spec.encode(),
        health_check: held.entry.check.as_ref().map(|check| check.to_json()),
        reported: held.has_reported,
    }
}

/// Whether an import needs no new entry.
fn is_same(entry: &super::entry::Entry, parts: &Parts) -> bool {
    entry.origin == parts.origin
        && entry.url == parts.url
        && entry.owner_pod == parts.owner_pod
        && entry.owner == parts.owner
        && entry.spec == parts.spec
        && entry.undecoded == parts.undecoded
        && entry.check == parts.check
}
