//! What this pod reads of the workers of others, and what it refuses.

use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;

use super::check::HealthCheck;
use super::entry::Entry;
use super::spec::WorkerSpec;
use super::table::{Held, Inner, Parts, Table, Written};
use crate::id::{Incarnation, PodId, WorkerId};
use crate::protocol::reports::{Seen, last_report};
use crate::protocol::worker::{Admission, Health, Liveness, Origin, admit};
use crate::store::workers::{PORTION, WorkerRow};

/// A row, decoded. Decoding is done before the table is locked.
struct Decoded {
    row: WorkerRow,
    parts: Parts,
    /// Why it does not decode.
    fault: Option<String>,
}

impl Table {
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
        // The row names this pod as the owner, but this pod did not register the worker. The import goes.
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

    pub(super) fn say_what_was_refused(&self, refused: Option<(usize, WorkerId, &'static str)>) {
        let Some((workers, one, what)) = refused else { return };
        tracing::warn!(
            target: "podlock", event = "worker_refused", pod = %self.pod, worker = %one, workers,
            "refused {what}: a worker is written by the pod that registered it; its own state is published again"
        );
    }

    pub(super) fn take_away(&self, inner: &mut Inner, id: WorkerId, read_epoch: u64) -> bool {
        match inner.origin(id) {
            None => false,
            Some(Origin::Mesh) => self.take(inner, id).is_some(),
            Some(Origin::Local) if inner.may_be_old(id, read_epoch) => {
                inner.doubts.insert(id, None);
                false
            }
            // This pod's registration wins.
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

    /// Puts in doubt what this pod shows of former processes of `pod`, whose process is now `by`. Returns whether there
    /// is something.
    pub(super) fn doubt_all_but_those_of(&self, pod: &PodId, by: Incarnation) -> bool {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let former =
            |held: &&Held| held.entry.origin == Origin::Mesh && held.entry.owner_pod == *pod && held.entry.owner != by;
        let before = inner.doubts.len();
        inner.doubts.extend(inner.workers.values().filter(former).map(|held| (held.entry.id, None)));
        inner.doubts.len() > before
    }

    /// They could not be read, and must be.
    pub(super) fn doubt(&self, ids: &[Uuid]) {
        self.lock().doubts.extend(ids.iter().map(|id| (WorkerId::from(*id), None)));
    }

    pub(super) fn has_doubts(&self) -> bool {
        !self.lock().doubts.is_empty()
    }
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
fn is_same(entry: &Entry, parts: &Parts) -> bool {
    entry.origin == parts.origin
        && entry.url == parts.url
        && entry.owner_pod == parts.owner_pod
        && entry.owner == parts.owner
        && entry.spec == parts.spec
        && entry.undecoded == parts.undecoded
        && entry.check == parts.check
}
