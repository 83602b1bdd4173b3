//! What this pod writes of its own workers: what has changed, in batches, and what became of each.

use std::collections::HashSet;
use std::sync::Arc;

use uuid::Uuid;

use super::comparing::is_reported;
use super::table::{Held, Inner, Parts, Table, Written};
use crate::id::{Incarnation, WorkerId};
use crate::protocol::Moment;
use crate::protocol::reports::{NEVER, Seen};
use crate::protocol::worker::{Liveness, Origin, Publication, publication};
use crate::store::workers::{Published, Put};

/// A batch takes no further worker once it holds 2 MiB of specs and checks, so it exceeds that by at most one worker. With
/// more, a statement may not end in time. With less, a reconnect takes more round trips.
const BATCH_BYTES: usize = 2 << 20;

/// What one statement writes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) puts: Vec<Put>,
    pub(super) removed: Vec<Uuid>,
    /// Workers in `removed` whose last write failed without an answer. The server may still execute that write.
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
        // Its reports are numbered anew. One that is inactive stays so until the next.
        let report = if former.has_reported { 0 } else { NEVER };
        let seen = Seen::first(report, entry.state.liveness() == Liveness::Inactive);
        let mut held = parts.held(Some(former), seen, self.needed(None));
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
            reported: held.has_reported && is_reported(held, now, self.every),
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
}
