//! What this pod reports of its workers, what the reports of all pods say, and how the copy is compared with the store.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use uuid::Uuid;

use super::table::{Held, Table, Written, bucket};
use crate::id::{Incarnation, WorkerId};
use crate::protocol::Moment;
use crate::protocol::reports::is_probed;
use crate::protocol::worker::{Liveness, Origin};
use crate::store::workers::{Noted, Overview, PORTION, Report};

impl Table {
    /// What this pod reports.
    pub(super) fn report(&self, now: Moment) -> Report {
        let inner = self.lock();
        let report_ms = i32::try_from(self.every.as_millis()).unwrap_or(i32::MAX);
        let mut report = Report { report_ms, ..Report::default() };
        for (id, held) in inner.workers.iter().filter(|(_, held)| held.entry.origin == Origin::Local) {
            report.reports = true;
            if is_reported(held, now, self.every) {
                continue;
            }
            report.unprobed.push(id.as_uuid());
            // Bounded. The row of any further worker keeps an older report, so it may become inactive sooner.
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
        // A worker that is named now for the first time was included in the owner's report before. This pod remembers
        // that report until it has read the worker's row again.
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
                let owner = inner.reports.get(&held.entry.owner).copied();
                if let Some(owner) = owner.filter(|owner| owner.number == report && owner.at.is_some()) {
                    held.entry.state.set_reported(owner.at);
                }
                held.needed = self.needed(owner);
                held.seen.look(report, counts);
                self.refresh(held);
            }
        }
        metrics::gauge!(crate::meters::WORKER_BYTES).set(inner.bytes as f64);
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

/// Whether this pod reports a worker of its own. One without a check need not be probed.
pub(super) fn is_reported(held: &Held, now: Moment, every: Duration) -> bool {
    held.entry
        .check
        .as_ref()
        .is_none_or(|check| is_probed(held.probes.last, now, every, check.interval_of_probes(), check.time_limit()))
}
