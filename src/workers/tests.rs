//! The table without a database: races between what this pod does and what it reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::check::HealthCheck;
use super::local::{NewWorker, check};
use super::select::Filter;
use super::spec::WorkerSpec;
use super::table::Table;
use crate::id::{Incarnation, PodId, WorkerId};
use crate::protocol::worker::{Health, Liveness, Origin};
use crate::store::workers::{Published, Reported, WorkerRow};
use crate::timestamp::Timestamp;

const SECOND: Duration = Duration::from_secs(1);

fn table() -> (Table, Incarnation) {
    (table_of(false), Incarnation::generate())
}

fn table_of(probes_imports: bool) -> Table {
    Table::new(PodId::new("own").unwrap(), SECOND * 30, 3, probes_imports)
}

fn register(table: &Table, own: Incarnation, url: &str) -> WorkerId {
    let new = NewWorker::new(url).spec(WorkerSpec::new().model("m"));
    let bytes = check(&new, 1024).unwrap();
    table.register(own, new, bytes, true).unwrap()
}

/// A row of another pod.
fn row(id: WorkerId, url: &str, owner: Incarnation, mark: i64) -> WorkerRow {
    WorkerRow {
        worker_id: id.as_uuid(),
        url: url.to_owned(),
        owner_pod: "other".to_owned(),
        owner,
        health: "ready".to_owned(),
        liveness: "active".to_owned(),
        reported_at: Some(Timestamp::UNIX_EPOCH),
        since_report: 1,
        spec: Some(json!({"model": "m"})),
        health_check: None,
        mark,
        is_owned: true,
    }
}

/// Writes all that has changed, as the store would.
fn publish(table: &Table, marks: &mut BTreeMap<WorkerId, i64>) {
    let batch = table.take_batch(500, SECOND);
    let mut published =
        Published { accepted: true, changed: true, told: false, written: Vec::new(), removed: batch.removed.clone() };
    for put in &batch.puts {
        let mark = marks.entry(WorkerId::from(put.worker_id)).or_default();
        *mark += 1;
        published.written.push((put.worker_id, *mark, put.reported));
    }
    for id in &batch.removed {
        marks.remove(&WorkerId::from(*id));
    }
    table.wrote(&batch, &published);
}

#[test]
fn after_100000_registrations_and_removals_that_race_no_origin_is_left() {
    let (table, own) = table();
    let table = Arc::new(table);
    let other = Incarnation::generate();
    let ends = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for nth in 0..3_u64 {
            let table = Arc::clone(&table);
            threads.spawn(move || {
                let mut dice = fastrand::Rng::with_seed(nth);
                for _ in 0..33_400 {
                    let url = format!("http://10.0.0.{}:80", dice.u8(..20));
                    let id = register(&table, own, &url);
                    // It may have been removed by another thread already.
                    table.remove(id);
                }
            });
        }
        let reads = Arc::clone(&table);
        let ends = &ends;
        let reader = threads.spawn(move || {
            let mut dice = fastrand::Rng::with_seed(99);
            let mut mark = 0;
            while !ends.load(Ordering::Acquire) {
                mark += 1;
                let url = format!("http://10.0.0.{}:80", dice.u8(..20));
                // Another pod's worker at the same URL, and a row that claims this pod's id.
                let ids = [
                    WorkerId::of(&PodId::new("other").unwrap(), &url),
                    WorkerId::of(&PodId::new("own").unwrap(), &url),
                ];
                let epoch = reads.read_epoch();
                for id in ids {
                    reads.take_in(own, vec![row(id, &url, other, mark)], [], epoch);
                    reads.take_in(own, vec![], [id.as_uuid()], epoch);
                }
            }
        });
        let writes = Arc::clone(&table);
        let writer = threads.spawn(move || {
            let mut marks = BTreeMap::new();
            while !ends.load(Ordering::Acquire) {
                writes.publish_as(own);
                publish(&writes, &mut marks);
            }
        });
        // The first three threads end by themselves.
        while Arc::strong_count(&table) > 3 {
            std::thread::yield_now();
        }
        ends.store(true, Ordering::Release);
        reader.join().unwrap();
        writer.join().unwrap();
    });
    let left: Vec<_> = table.lock().workers.keys().map(WorkerId::as_uuid).collect();
    table.take_in(own, vec![], left, u64::MAX);
    let mut marks = BTreeMap::new();
    publish(&table, &mut marks);
    publish(&table, &mut marks);
    let inner = table.lock();
    assert!(inner.is_consistent());
    assert!(inner.workers.is_empty() && inner.owners.is_empty(), "{:?}", inner.workers.keys());
    assert!(inner.published.is_empty() && inner.dirty.is_empty() && inner.writing.is_empty());
}

#[test]
fn a_local_claim_wins_over_a_remote_removal_in_either_order() {
    for removal_first in [true, false] {
        let (table, own) = table();
        table.publish_as(own);
        let url = "http://10.0.0.1:80";
        let id = WorkerId::of(&PodId::new("own").unwrap(), url);
        let former = Incarnation::generate();
        // What a former process of this pod left, as this one read it.
        table.take_in(own, vec![row(id, url, former, 7)], [], 0);
        assert_eq!(table.get(id).unwrap().origin(), Origin::Mesh);
        let epoch = table.read_epoch();
        if removal_first {
            table.take_in(own, vec![], [id.as_uuid()], epoch);
            register(&table, own, url);
        } else {
            register(&table, own, url);
            table.take_in(own, vec![], [id.as_uuid()], epoch);
        }
        assert_eq!(table.get(id).unwrap().origin(), Origin::Local);
        let mut marks = BTreeMap::new();
        publish(&table, &mut marks);
        assert_eq!(marks.len(), 1, "it is published");
        // The removal is read once more, by a read that began before the write had ended.
        table.take_in(own, vec![], [id.as_uuid()], epoch);
        assert!(table.take_batch(500, SECOND).is_empty() && table.get(id).is_some());
        // And by one that began afterwards: somebody has removed the row.
        table.take_in(own, vec![], [id.as_uuid()], table.read_epoch());
        publish(&table, &mut marks);
        assert_eq!(marks[&id], 2, "it is published again");
    }
}

#[test]
fn removing_what_nobody_knows_is_ignored() {
    let (table, own) = table();
    table.publish_as(own);
    let id = WorkerId::of(&PodId::new("own").unwrap(), "http://10.0.0.1:80");
    assert_eq!(table.remove(id), None);
    assert!(!table.take_in(own, vec![], [id.as_uuid()], 0));
    assert!(table.take_batch(500, SECOND).is_empty());
}

#[test]
fn what_was_never_published_is_not_removed_and_what_was_imported_is_not_published() {
    let (table, own) = table();
    table.publish_as(own);
    let import = WorkerId::of(&PodId::new("other").unwrap(), "http://10.0.0.2:80");
    table.take_in(own, vec![row(import, "http://10.0.0.2:80", Incarnation::generate(), 1)], [], 0);
    let id = register(&table, own, "http://10.0.0.1:80");
    table.remove(id);
    assert!(table.take_batch(500, SECOND).is_empty());
}

#[test]
fn a_write_whose_reply_was_lost_is_removed_from_the_store_as_well() {
    let (table, own) = table();
    table.publish_as(own);
    let id = register(&table, own, "http://10.0.0.1:80");
    let batch = table.take_batch(500, SECOND);
    table.not_written(&batch);
    table.remove(id);
    assert_eq!(table.take_batch(500, SECOND).removed, [id.as_uuid()]);
}

/// Somebody wrote the row between the write of this pod and its reply, and a read from before the reply shows that.
#[test]
fn what_a_read_shows_during_a_write_is_read_once_more_unless_it_is_the_write_itself() {
    let (table, own) = table();
    table.publish_as(own);
    let url = "http://10.0.0.1:80";
    let id = register(&table, own, url);
    for (mark, is_foreign) in [(1, false), (77, true)] {
        let epoch = table.read_epoch();
        let batch = table.take_batch(500, SECOND);
        let mut seen = row(id, url, own, mark);
        seen.health = "failed".to_owned();
        table.take_in(own, vec![seen.clone()], [], epoch);
        assert!(table.has_doubts() && table.take_doubts().is_empty(), "the write is under way");
        let written = vec![(id.as_uuid(), if is_foreign { 76 } else { 1 }, true)];
        table.wrote(&batch, &Published { accepted: true, changed: true, told: false, written, removed: vec![] });
        assert_eq!(table.take_doubts(), if is_foreign { vec![id.as_uuid()] } else { vec![] });
        // Read once more: it is refused.
        let is_news = table.take_in(own, vec![seen], [], table.read_epoch());
        assert_eq!(is_news, is_foreign);
        assert_eq!(table.take_batch(500, SECOND).is_empty(), !is_foreign);
        table.set_health(id, Health::Ready);
    }
}

/// The first write may be done yet: it is older, and the server numbers it so, but it may commit after the second looked.
#[test]
fn a_removal_after_a_write_that_may_still_be_done_is_repeated() {
    let (table, own) = table();
    table.publish_as(own);
    let id = register(&table, own, "http://10.0.0.1:80");
    let batch = table.take_batch(500, SECOND);
    table.not_written(&batch);
    table.remove(id);
    for is_repeated in [true, false] {
        let batch = table.take_batch(500, SECOND);
        assert_eq!(batch.removed, [id.as_uuid()]);
        let removed = batch.removed.clone();
        let published = Published { accepted: true, changed: false, told: false, written: vec![], removed };
        assert_eq!(table.wrote(&batch, &published), is_repeated);
    }
    assert!(table.take_batch(500, SECOND).is_empty() && table.lock().published.is_empty());
}

#[test]
fn workers_that_cannot_be_written_do_not_keep_the_others_waiting() {
    let (table, own) = table();
    table.publish_as(own);
    let ids: std::collections::BTreeSet<WorkerId> =
        (0..6).map(|n| register(&table, own, &format!("http://10.0.0.{n}:80"))).collect();
    let mut tried = std::collections::BTreeSet::new();
    for _ in 0..3 {
        // Their rows are locked: the statement passes them over.
        let batch = table.take_batch(2, SECOND);
        tried.extend(batch.puts.iter().map(|put| WorkerId::from(put.worker_id)));
        let nothing = Published { accepted: true, changed: false, told: false, written: vec![], removed: vec![] };
        assert!(table.wrote(&batch, &nothing));
    }
    assert_eq!(tried, ids);
    assert!(table.lock().is_pending(6));
}

/// The owner is the monitor: its own verdict is no foreign write, and revives nothing.
#[test]
fn what_the_monitor_of_this_pod_writes_is_not_foreign() {
    let (table, own) = table();
    table.publish_as(own);
    let id = register(&table, own, "http://10.0.0.1:80");
    let mut marks = BTreeMap::new();
    publish(&table, &mut marks);
    let noted = crate::store::workers::Noted { worker: id.as_uuid(), is_new: true, mark: 50 };
    table.noted(Liveness::Inactive, &[noted]);
    let mut seen = row(id, "http://10.0.0.1:80", own, 50);
    (seen.owner_pod, seen.liveness) = ("own".to_owned(), "inactive".to_owned());
    assert!(!table.take_in(own, vec![seen.clone()], [], table.read_epoch()));
    assert!(table.take_batch(500, SECOND).is_empty());
    // Another pod is the monitor.
    (seen.mark, seen.liveness) = (51, "active".to_owned());
    assert!(!table.take_in(own, vec![seen], [], table.read_epoch()));
    assert!(table.take_batch(500, SECOND).is_empty());
}

#[test]
fn writing_a_row_again_does_not_report_a_worker_whose_probes_hang() {
    let (table, own) = table();
    table.publish_as(own);
    let new = || NewWorker::new("http://10.0.0.1:80").health_check(HealthCheck::tcp());
    let id = table.register(own, new(), 0, true).unwrap();
    assert!(!table.take_batch(500, SECOND).puts[0].reported, "it was not probed yet");
    table.probed(id, true, SECOND * 100);
    assert!(table.take_batch(500, SECOND * 101).puts[0].reported);
    table.register(own, new(), 0, true).unwrap();
    assert!(table.take_batch(500, SECOND * 110).puts[0].reported);
    table.register(own, new(), 0, true).unwrap();
    assert!(!table.take_batch(500, SECOND * 1000).puts[0].reported, "its last probe ended long ago");
    assert_eq!(table.report(SECOND * 1000).unprobed, [id.as_uuid()]);
}

#[test]
fn an_owner_that_reports_more_rarely_than_this_pod_looks_is_waited_for() {
    let (table, _) = table();
    let every = |secs| Some(Reported { number: 1, every: SECOND * secs });
    assert_eq!((table.needed(None), table.needed(every(30)), table.needed(every(300))), (3, 3, 30));
    assert_eq!(table.needed(every(1)), 3, "this pod does not look more often");
}

#[test]
fn a_pod_that_is_back_after_its_burial_on_a_server_that_was_lost_is_shown() {
    let (table, own) = table();
    let owner = Incarnation::generate();
    let id = WorkerId::of(&PodId::new("other").unwrap(), "http://10.0.0.1:80");
    table.hide(owner);
    table.take_in(own, vec![row(id, "http://10.0.0.1:80", owner, 1)], [], table.read_epoch());
    assert!(table.get(id).is_some());
}

#[test]
fn a_spec_that_others_would_refuse_is_refused_here() {
    let mut spec = WorkerSpec::new();
    spec.other.insert("kind".to_owned(), 5.into());
    for spec in [WorkerSpec::new().capacity(0), spec] {
        let error = check(&NewWorker::new("http://10.0.0.1:80").spec(spec), 1024).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::InvalidInput, "{error}");
    }
}

#[test]
fn a_changed_id_for_a_known_url_replaces_the_old_one_in_one_step() {
    let (table, own) = table();
    let (old, new) = (WorkerId::of(&PodId::new("a").unwrap(), "u"), WorkerId::of(&PodId::new("b").unwrap(), "u"));
    let owner = Incarnation::generate();
    table.take_in(own, vec![row(old, "http://10.0.0.1:80", owner, 1)], [], 0);
    let all = Filter::new();
    let choose = || table.lists.matching(&all, || table.shown()).iter().map(|w| w.id()).collect::<Vec<_>>();
    assert_eq!(choose(), [old]);
    table.take_in(own, vec![row(new, "http://10.0.0.1:80", owner, 2)], [], 0);
    table.take_in(own, vec![], [old.as_uuid()], 0);
    assert_eq!(choose(), [new]);
}

#[test]
fn the_workers_of_a_buried_pod_are_chosen_no_more_even_from_a_list_made_before() {
    let (table, own) = table();
    let owner = Incarnation::generate();
    let id = WorkerId::of(&PodId::new("other").unwrap(), "http://10.0.0.1:80");
    table.take_in(own, vec![row(id, "http://10.0.0.1:80", owner, 1)], [], 0);
    let all = table.lists.matching(&Filter::new(), || table.shown());
    let lease = all.least_in_flight().unwrap();
    table.hide(owner);
    assert!(all.is_empty() && all.least_in_flight().is_none() && all.weighted().is_none());
    // A read from before the burial does not bring it back.
    table.take_in(own, vec![row(id, "http://10.0.0.1:80", owner, 2)], [], 0);
    assert!(table.get(id).is_none() && all.is_empty());
    assert_eq!(lease.worker().in_flight(), 1);
    drop(lease);
    assert!(table.lock().is_consistent());
}

#[test]
fn leases_are_spread_over_the_least_busy_weights_are_kept_and_a_capacity_holds() {
    let (table, own) = table();
    let owner = Incarnation::generate();
    let worker = |n: i64, spec: serde_json::Value| {
        let url = format!("http://10.0.0.{n}:80");
        let mut row = row(WorkerId::of(&PodId::new("other").unwrap(), &url), &url, owner, n);
        row.spec = Some(spec);
        row
    };
    let specs = [json!({"weight": 3}), json!({"weight": 1}), json!({"weight": 0}), json!({"kind": "other"})];
    let rows: Vec<_> = (1..).zip(specs).map(|(n, spec)| worker(n, spec)).collect();
    table.take_in(own, rows, [], 0);
    let weighted = table.lists.matching(&Filter::new(), || table.shown());
    let mut taken = BTreeMap::new();
    for _ in 0..5000 {
        *taken.entry(weighted.weighted().unwrap().worker().url().to_owned()).or_insert(0) += 1;
    }
    // 3, 1, 0 and 1 of 5.
    let near = |url: &str, share: i32| (taken.get(url).copied().unwrap_or(0) - share).abs() < 300;
    assert!(near("http://10.0.0.1:80", 3000) && near("http://10.0.0.2:80", 1000), "{taken:?}");
    assert!(!taken.contains_key("http://10.0.0.3:80") && near("http://10.0.0.4:80", 1000), "{taken:?}");
    let leases: Vec<_> = (0..8).map(|_| weighted.least_in_flight().unwrap()).collect();
    assert!(weighted.iter().all(|w| w.in_flight() == 2), "{weighted:?}");
    drop(leases);
    table.take_in(own, vec![worker(9, json!({"capacity": 2, "kind": "narrow"}))], [], 0);
    let narrow = table.lists.matching(&Filter::new().kind("narrow"), || table.shown());
    let (first, second) = (narrow.least_in_flight().unwrap(), narrow.least_in_flight().unwrap());
    assert!(narrow.least_in_flight().is_none() && narrow.is_empty());
    drop(first);
    assert_eq!(narrow.count(), 1);
    drop(second);
}

#[test]
fn a_hint_never_revives_what_this_pods_own_probe_calls_failed() {
    let (table, own) = (table_of(true), Incarnation::generate());
    let owner = Incarnation::generate();
    let id = WorkerId::of(&PodId::new("other").unwrap(), "http://10.0.0.1:80");
    let mut hint = row(id, "http://10.0.0.1:80", owner, 1);
    hint.health_check = Some(json!({"path": "/", "interval_ms": 1000, "timeout_ms": 100, "give_up_after": 3}));
    table.take_in(own, vec![hint.clone()], [], 0);
    // Its owner calls it ready, and this pod has not reached it yet.
    assert_eq!(table.get(id).unwrap().health(), Health::Pending);
    for n in 0..3 {
        table.probed(id, false, SECOND * n);
    }
    assert_eq!(table.get(id).unwrap().health(), Health::Failed);
    hint.mark = 2;
    table.take_in(own, vec![hint.clone()], [], 0);
    assert_eq!(table.get(id).unwrap().health(), Health::Failed);
    table.probed(id, true, SECOND * 9);
    assert_eq!(table.get(id).unwrap().health(), Health::Ready);
    // Explicitly unhealthy, whatever its spec says of probes.
    (hint.mark, hint.health, hint.health_check) = (3, "not_ready".to_owned(), None);
    table.take_in(own, vec![hint], [], 0);
    let shown = table.get(id).unwrap();
    assert_eq!((shown.health(), shown.liveness(), shown.is_available()), (Health::NotReady, Liveness::Active, false));
}
