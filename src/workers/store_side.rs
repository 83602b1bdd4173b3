//! What passes between the table and the store: what this pod writes of its own workers, what it reads of others', and
//! how the two are compared.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use super::check::HealthCheck;
use super::spec::WorkerSpec;
use super::table::{Held, Inner, Parts, Table, Written, bucket};
use crate::id::{Incarnation, PodId, WorkerId};
use crate::protocol::Moment;
use crate::protocol::reports::{Seen, last_report};
use crate::protocol::worker::{Admission, Health, Liveness, Origin, Publication, admit, publication};
use crate::store::workers::{Noted, Overview, PORTION, Published, Put, Report, WorkerRow};

/// The most bytes of specs that one statement writes: 2 MiB. More makes a statement that may not end in time.
const BATCH_BYTES: usize = 2 << 20;

/// What one statement writes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) puts: Vec<Put>,
    pub(super) removed: Vec<Uuid>,
    /// Those of `removed` of which an earlier write may still be done.
    doubtful: HashSet<Uuid>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.removed.is_empty()
    }

    fn ids(&self) -> impl Iterator<Item = WorkerId> {
        self.puts.iter().map(|put| put.worker_id).chain(self.removed.iter().copied()).map(WorkerId::from)
    }
}

/// A row, decoded. Decoding is done before the table is locked.
struct Decoded {
    row: WorkerRow,
    parts: Parts,
    /// Why it does not decode.
    fault: Option<String>,
}

impl Table {
    /// This process publishes under this incarnation from now on. If that is new, all its workers are written again, and
    /// nothing that it wrote before counts. What its former incarnation had published goes with that incarnation.
    pub(super) fn publish_as(&self, own: Incarnation) {
        let mut inner = self.lock();
        if inner.own == Some(own) {
            return;
        }
        inner.own = Some(own);
        let is_local = |held: &&Held| held.entry.origin == Origin::Local;
        let ids: Vec<WorkerId> = inner.workers.values().filter(is_local).map(|held| held.entry.id).collect();
        for id in &ids {
            self.take_over(&mut inner, *id, own);
            self.changed(&mut inner, *id);
        }
        inner.published.clear();
        inner.writing.clear();
        inner.doubts.clear();
    }

    /// An entry names the registration of its owner, so it needs a new one.
    fn take_over(&self, inner: &mut Inner, id: WorkerId, own: Incarnation) {
        let Some(former) = inner.workers.get(&id).filter(|held| held.entry.owner != own) else { return };
        let entry = &former.entry;
        let parts = Parts {
            id,
            url: Arc::clone(&entry.url),
            origin: Origin::Local,
            owner_pod: entry.owner_pod.clone(),
            owner: own,
            spec: Arc::clone(&entry.spec),
            undecoded: None,
            check: entry.check.clone(),
            bytes: former.bytes,
        };
        let mut held = parts.held(Some(former), former.seen, self.needed(None));
        (held.own, held.probes, held.has_reported) = (former.own, former.probes, former.has_reported);
        self.put(inner, held);
    }

    /// Takes what has changed of this pod's workers: at most `most`, and no more than one statement should write. More
    /// stays for the next.
    pub(super) fn take_batch(&self, most: usize, now: Moment) -> Batch {
        let mut inner = self.lock();
        let (mut batch, mut bytes) = (Batch::default(), 0);
        while batch.puts.len() + batch.removed.len() < most && bytes < BATCH_BYTES {
            let behind = inner.tried.and_then(|tried| inner.dirty.range(tried..).find(|(id, _)| **id != tried));
            let next = behind.or_else(|| inner.dirty.first_key_value()).map(|(id, change)| (*id, *change));
            let Some((id, change)) = next else { break };
            inner.dirty.remove(&id);
            inner.tried = Some(id);
            match publication(inner.origin(id), inner.published.contains_key(&id)) {
                Publication::Put => {
                    if let Some(held) = inner.workers.get(&id) {
                        bytes += held.bytes;
                        batch.puts.push(self.put_of(held, now));
                    }
                }
                Publication::Remove => {
                    batch.removed.push(id.as_uuid());
                    if inner.published.get(&id).is_some_and(|written| written.mark.is_none()) {
                        batch.doubtful.insert(id.as_uuid());
                    }
                }
                Publication::Nothing => continue,
            }
            inner.writing.insert(id, change);
        }
        batch
    }

    fn put_of(&self, held: &Held, now: Moment) -> Put {
        Put {
            worker_id: held.entry.id.as_uuid(),
            url: held.entry.url.to_string(),
            health: held.health().as_str(),
            spec: held.entry.spec.encode(),
            health_check: held.entry.check.as_ref().map(|check| check.to_json()),
            reported: held.has_reported && is_probed(held, now, self.every),
        }
    }

    /// A write has ended. Returns true if some of it must be written again.
    pub(super) fn wrote(&self, batch: &Batch, published: &Published) -> bool {
        let mut inner = self.lock();
        inner.epoch += 1;
        let epoch = inner.epoch;
        for (id, mark, is_active) in &published.written {
            let id = WorkerId::from(*id);
            inner.published.insert(id, Written { mark: Some(*mark), epoch });
            // A read has shown the row before this reply came.
            if inner.doubts.get(&id) == Some(&Some(*mark)) {
                inner.doubts.remove(&id);
            }
            if let Some(held) = inner.workers.get_mut(&id) {
                held.stored = if *is_active { Liveness::Active } else { Liveness::Inactive };
            }
            inner.writing.remove(&id);
        }
        for id in &published.removed {
            // An earlier write of this pod that is still under way on the server may bring the row back after this
            // statement has looked. Its number is lower than that of the next statement, which looks again.
            let is_sure = !batch.doubtful.contains(id);
            let id = WorkerId::from(*id);
            if is_sure {
                inner.note_deleted(id);
                if inner.doubts.get(&id) == Some(&None) {
                    inner.doubts.remove(&id);
                }
                inner.writing.remove(&id);
            } else if let Some(written) = inner.published.get_mut(&id) {
                *written = Written { mark: Some(0), epoch };
            }
        }
        self.write_again(&mut inner, batch)
    }

    /// What was not written is written again, unless it has changed again meanwhile.
    fn write_again(&self, inner: &mut Inner, batch: &Batch) -> bool {
        let mut again = false;
        for id in batch.ids() {
            if let Some(change) = inner.writing.remove(&id) {
                inner.dirty.entry(id).or_insert(change);
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
        for id in batch.ids().filter(|id| inner.writing.contains_key(id)).collect::<Vec<_>>() {
            inner.published.insert(id, Written { mark: None, epoch });
        }
        self.write_again(&mut inner, batch);
    }

    /// A read of the store begins now.
    pub(super) fn read_epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// Takes in what a read returned: rows, and workers that were removed. All of it is seen at once, so a worker that has
    /// another id now is never absent. Returns whether some of it was news.
    pub(super) fn take_in(
        &self,
        own: Incarnation,
        rows: Vec<WorkerRow>,
        removed: impl IntoIterator<Item = Uuid>,
        read_epoch: u64,
    ) -> bool {
        let decoded: Vec<Decoded> = rows.into_iter().map(decode).collect();
        let mut inner = self.lock();
        let mut news = false;
        for row in decoded {
            news |= self.take_in_row(&mut inner, own, row, read_epoch);
        }
        for id in removed {
            news |= self.take_away(&mut inner, WorkerId::from(id), read_epoch);
        }
        self.say_what_was_refused(inner.refused.take());
        news
    }

    fn take_in_row(&self, inner: &mut Inner, own: Incarnation, decoded: Decoded, read_epoch: u64) -> bool {
        let row = &decoded.row;
        let id = WorkerId::from(row.worker_id);
        let is_known = inner.published.get(&id).is_some_and(|written| written.mark == Some(row.mark));
        let is_buried = inner.gone.get(&row.owner).is_some_and(|epoch| read_epoch < *epoch);
        if (!row.is_owned || is_buried) && row.owner != own {
            return self.take_away(inner, id, read_epoch);
        }
        match admit(inner.origin(id), row.owner == own, is_known) {
            Admission::Echo => false,
            Admission::Refuse if inner.may_be_old(id, read_epoch) => {
                inner.doubts.insert(id, Some(row.mark));
                false
            }
            Admission::Refuse => self.refuse(inner, own, id, row),
            Admission::Import => self.import(inner, id, decoded),
        }
    }

    /// Somebody else wrote a row of this pod, or the monitor wrote its liveness.
    fn refuse(&self, inner: &mut Inner, own: Incarnation, id: WorkerId, row: &WorkerRow) -> bool {
        let epoch = inner.epoch;
        // An import whose row says now that it is this pod's, which it is not.
        if inner.origin(id) == Some(Origin::Mesh) {
            self.take(inner, id);
        }
        let Some(held) = inner.workers.get_mut(&id) else {
            inner.refuse(id, "a row of a worker that this pod does not have");
            inner.published.insert(id, Written { mark: Some(row.mark), epoch });
            self.changed(inner, id);
            return true;
        };
        let is_as_written = row.owner == own && *row.url == *held.entry.url && row.health == held.health().as_str();
        let stored = Liveness::parse(&row.liveness).unwrap_or(Liveness::Inactive);
        if is_as_written && stored != held.stored {
            held.stored = stored;
            inner.published.insert(id, Written { mark: Some(row.mark), epoch });
            return false;
        }
        inner.refuse(id, "a row that somebody else wrote");
        self.changed(inner, id);
        true
    }

    fn say_what_was_refused(&self, refused: Option<(usize, WorkerId, &'static str)>) {
        let Some((workers, one, what)) = refused else { return };
        tracing::warn!(
            target: "podlock", event = "worker_refused", pod = %self.pod, worker = %one, workers,
            "refused {what}: a worker is written by the pod that registered it; its own state is published again"
        );
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
                inner.refuse(id, "the removal of a worker of this pod");
                self.changed(inner, id);
                true
            }
        }
    }

    fn import(&self, inner: &mut Inner, id: WorkerId, decoded: Decoded) -> bool {
        let Decoded { row, parts, fault } = decoded;
        let former = inner.workers.get(&id);
        if former.is_some_and(|held| held.mark == row.mark) {
            return false;
        }
        let has_reported = row.reported_at.is_some();
        let hint = Health::parse(&row.health);
        let stored = Liveness::parse(&row.liveness).unwrap_or(Liveness::Inactive);
        let owner = inner.reports.get(&row.owner).copied();
        let is_named = inner.unprobed.contains(&id);
        let report = last_report(has_reported, row.since_report, owner.map(|owner| owner.number), is_named);
        // A worker that is new here is as the monitor calls it. Later, only its owner's reports count.
        let mut seen = match former.filter(|f| f.entry.owner == row.owner) {
            Some(former) => former.seen,
            None => Seen::first(report, stored == Liveness::Inactive && has_reported),
        };
        seen.look(report, false);
        let was_undecoded = former.and_then(|f| f.entry.undecoded.as_ref());
        if let Some(fault) = fault.filter(|_| was_undecoded != parts.undecoded.as_ref()) {
            tracing::warn!(
                target: "podlock", event = "worker_undecoded", pod = %self.pod, worker = %id, url = row.url,
                owner_pod = row.owner_pod, error = fault,
                "imported as not ready: it does not decode"
            );
        }
        if !former.is_some_and(|f| is_same(&f.entry, &parts)) {
            let mut held = parts.held(former, seen, self.needed(owner));
            held.hint = hint;
            match former {
                Some(former) if former.entry.check == held.entry.check => {
                    (held.own, held.probes) = (former.own, former.probes);
                }
                // Until the prober says which workers it probes.
                _ => held.own = (self.probes_imports && held.entry.check.is_some()).then_some(Health::Pending),
            }
            if former.is_none() {
                held.begin();
            }
            self.put(inner, held);
            self.to_probe.notify_one();
        }
        let Some(held) = inner.workers.get_mut(&id) else { return false };
        (held.mark, held.hint, held.has_reported, held.since) = (row.mark, hint, has_reported, row.since_report);
        (held.seen, held.stored) = (seen, stored);
        held.entry.state.set_reported(row.reported_at);
        self.refresh(held);
        true
    }

    /// The workers to read once more, if no write of them is under way.
    pub(super) fn take_doubts(&self) -> Vec<Uuid> {
        let mut inner = self.lock();
        let settled = |id: &WorkerId| !inner.dirty.contains_key(id) && !inner.writing.contains_key(id);
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

    /// What this pod reports.
    pub(super) fn report(&self, now: Moment) -> Report {
        let inner = self.lock();
        let report_ms = i32::try_from(self.every.as_millis()).unwrap_or(i32::MAX);
        let mut report = Report { report_ms, ..Report::default() };
        for (id, held) in inner.workers.iter().filter(|(_, held)| held.entry.origin == Origin::Local) {
            report.reports = true;
            if is_probed(held, now, self.every) {
                continue;
            }
            report.unprobed.push(id.as_uuid());
            // Bounded. The rows of the others keep an older report, so they are called inactive a little sooner.
            if !inner.unprobed.contains(id) && held.has_reported && report.newly.len() < PORTION {
                report.newly.push(id.as_uuid());
            }
        }
        report
    }

    /// Takes in the reports of all pods. `counts`: enough time has passed since the last look that counted.
    pub(super) fn looked(&self, own: Incarnation, overview: &Overview, report: &Report, counts: bool) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.epoch += 1;
        let epoch = inner.epoch;
        for (id, mark) in &overview.kept {
            inner.published.insert(WorkerId::from(*id), Written { mark: Some(*mark), epoch });
        }
        // The statement's snapshot is from before its own report.
        let is_own = |id: &WorkerId| inner.workers.get(id).is_some_and(|held| held.entry.origin == Origin::Local);
        let others = overview.unprobed.iter().map(|id| WorkerId::from(*id)).filter(|id| !is_own(id));
        let named: HashSet<WorkerId> = others.chain(report.unprobed.iter().map(|id| WorkerId::from(*id))).collect();
        // The report before included those that are named now for the first time. Their rows say so a little later.
        for id in named.difference(&inner.unprobed) {
            if let Some(held) = inner.workers.get_mut(id)
                && let Some(before) = inner.reports.get(&held.entry.owner)
                && before.number > held.since
                && (held.has_reported || held.entry.origin == Origin::Mesh)
            {
                (held.since, held.has_reported) = (before.number, true);
            }
        }
        inner.unprobed = named;
        inner.reports.clone_from(&overview.reports);
        if let Some(number) = overview.own_report {
            inner.reports.entry(own).or_default().number = number;
        }
        let ids: Vec<WorkerId> = inner.workers.keys().copied().collect();
        for id in ids {
            let Some(report) = inner.workers.get(&id).map(|held| inner.report_of(held)) else { continue };
            if let Some(held) = inner.workers.get_mut(&id) {
                held.needed = self.needed(inner.reports.get(&held.entry.owner).copied());
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
        let published = inner.published.iter().filter_map(|(id, written)| written.mark.map(|mark| (*id, mark)));
        for (id, mark) in imports.chain(published) {
            *own.entry(bucket(id.as_uuid())).or_default() ^= mark;
        }
        let sum = |sums: &BTreeMap<i32, i64>, bucket: i32| sums.get(&bucket).copied().unwrap_or(0);
        (0..256).filter(|bucket| sum(&own, *bucket) != sum(sums, *bucket)).collect()
    }

    /// Compares the copy with the marks of these buckets. Takes out what the store does not have, and returns the workers
    /// to read: removals come before backfills. `is_member`: this incarnation is in the roster. If not, its rows do not
    /// count, whoever has them.
    pub(super) fn compare(
        &self,
        buckets: &[i32],
        marks: &BTreeMap<Uuid, i64>,
        is_member: bool,
        read_epoch: u64,
    ) -> Vec<Uuid> {
        let mut inner = self.lock();
        let here = |id: &WorkerId| buckets.binary_search(&bucket(id.as_uuid())).is_ok();
        let lost = |id: &WorkerId| here(id) && !marks.contains_key(&id.as_uuid());
        let imports = inner.workers.values().filter(|held| held.entry.origin == Origin::Mesh);
        let absent: Vec<WorkerId> = imports.map(|held| held.entry.id).filter(|id| lost(id)).collect();
        for id in absent {
            self.take(&mut inner, id);
        }
        let unpublished: Vec<WorkerId> = inner.published.keys().copied().filter(|id| is_member && lost(id)).collect();
        for id in unpublished {
            if !inner.may_be_old(id, read_epoch) {
                inner.published.remove(&id);
            }
            self.take_away(&mut inner, id, read_epoch);
        }
        self.say_what_was_refused(inner.refused.take());
        let known = |id: &WorkerId| match inner.workers.get(id) {
            Some(held) if held.entry.origin == Origin::Mesh => Some(held.mark),
            _ => inner.published.get(id).and_then(|written| written.mark),
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

    /// The store has this liveness of these workers.
    pub(super) fn noted(&self, liveness: Liveness, noted: &[Noted]) {
        let mut inner = self.lock();
        inner.epoch += 1;
        let epoch = inner.epoch;
        for Noted { worker, is_new, mark } in noted {
            let id = WorkerId::from(*worker);
            let Some(held) = inner.workers.get_mut(&id) else { continue };
            held.stored = liveness;
            if *is_new && held.entry.origin == Origin::Local && inner.published.contains_key(&id) {
                inner.published.insert(id, Written { mark: Some(*mark), epoch });
            }
        }
    }
}

/// Whether a worker of this pod was probed lately, by this process's clock, or need not be. The pause between two probes
/// varies.
fn is_probed(held: &Held, now: Moment, every: Duration) -> bool {
    let Some(check) = &held.entry.check else { return true };
    let lately = every.max(check.interval_of_probes() * 2 + check.time_limit());
    held.probes.last.is_some_and(|last| now.saturating_sub(last) <= lately)
}

fn decode(mut row: WorkerRow) -> Decoded {
    let raw = row.spec.take().unwrap_or(Value::Null);
    let json = row.health_check.take().filter(|check| !check.is_null());
    let bytes = raw.to_string().len() + json.as_ref().map_or(0, |json| json.to_string().len());
    let spec = WorkerSpec::decode(raw.clone()).map_err(|why| why.to_string());
    let check = json.map(|check| HealthCheck::from_json(&check)).transpose().map_err(|why| why.to_string());
    let fault = spec.as_ref().err().or(check.as_ref().err()).cloned();
    let parts = Parts {
        id: WorkerId::from(row.worker_id),
        url: row.url.as_str().into(),
        origin: Origin::Mesh,
        owner_pod: PodId::lossy(&row.owner_pod),
        owner: row.owner,
        spec: Arc::new(spec.unwrap_or_default()),
        undecoded: fault.is_some().then_some(raw),
        check: check.unwrap_or_default().map(Arc::new),
        bytes,
    };
    Decoded { row, parts, fault }
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
