//! Rebuilds the roster from the event log.
//!
//! Folding `studio_pod_events` from its start gives the rows of `studio_pods`. An event that cannot follow the events
//! before it is an error and is never skipped: something else wrote to the log or to the roster.
//!
//! If old events were deleted, the log begins with a `snapshot`: the state after the deleted events ([`snapshot`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::event::EventKind;
use crate::id::{Incarnation, PodId};

/// One entry of the log, as far as the fold needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct LogEntry {
    /// Its position in the log.
    pub idx: i64,
    /// What happened: the name of an [`EventKind`], or a kind of a newer version.
    pub kind: String,
    /// The pod that the event is about.
    pub pod_id: PodId,
    /// The incarnation of that pod.
    pub incarnation: Incarnation,
    /// Details of the kind. `joined` names in `replaced` the incarnation that it replaced, and in `cordoned_by` who had
    /// cordoned its process before; `returned` has its `session`; `suspected` has its `event_index`; `snapshot` is a
    /// [`RosterSnapshot`].
    pub detail: Value,
}

/// One pod of a folded roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its registration.
    pub incarnation: Incarnation,
    /// Whether it has begun its clean stop.
    pub draining: bool,
    /// Whether it is cordoned.
    pub cordoned: bool,
    /// How many liveness sessions it has had.
    pub session: i64,
}

/// The roster: each name at most once.
pub type Roster = BTreeMap<PodId, Member>;

/// An entry that cannot follow the entries before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {idx} ({kind} of pod {pod_id}, incarnation {incarnation}) cannot follow those before it: {why}")]
pub struct FoldError {
    /// The entry's position.
    pub idx: i64,
    /// Its kind.
    pub kind: String,
    /// Its pod.
    pub pod_id: PodId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Why it cannot follow.
    pub why: String,
}

/// The state after the deleted beginning of a log: the detail of the `snapshot` event that replaces it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RosterSnapshot {
    /// The roster.
    pub roster: Vec<SnapshotPod>,
    /// For each pod of the roster that was suspected, its event index at the last suspicion.
    pub suspected: BTreeMap<Incarnation, i64>,
}

/// One pod of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotPod {
    /// Its name.
    pub pod_id: PodId,
    /// Its registration.
    pub incarnation: Incarnation,
    /// Whether it has begun its clean stop.
    pub draining: bool,
    /// How many liveness sessions it has had.
    pub session: i64,
    /// Whether it is cordoned. Left out if it is not: versions that know no cordon refuse a field that they do not
    /// know.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cordoned: bool,
}

/// The state after some entries.
#[derive(Default)]
struct FoldState {
    roster: Roster,
    suspected: BTreeMap<Incarnation, i64>,
}

/// Folds a log, given in order and from its start.
///
/// # Errors
///
/// The first entry that is out of order, of an unknown kind, or an illegal step.
pub fn fold<'a>(entries: impl IntoIterator<Item = &'a LogEntry>) -> Result<Roster, FoldError> {
    run(entries).map(|state| state.roster)
}

/// The snapshot that can replace these entries, given in order and from the log's start.
///
/// # Errors
///
/// As [`fold`].
pub fn snapshot<'a>(entries: impl IntoIterator<Item = &'a LogEntry>) -> Result<RosterSnapshot, FoldError> {
    let FoldState { roster, mut suspected } = run(entries)?;
    suspected.retain(|incarnation, _| roster.values().any(|member| member.incarnation == *incarnation));
    let kept = |(pod_id, Member { incarnation, draining, cordoned, session })| SnapshotPod {
        pod_id,
        incarnation,
        draining,
        session,
        cordoned,
    };
    Ok(RosterSnapshot { roster: roster.into_iter().map(kept).collect(), suspected })
}

fn run<'a>(entries: impl IntoIterator<Item = &'a LogEntry>) -> Result<FoldState, FoldError> {
    let mut state = FoldState::default();
    let mut last_idx = i64::MIN;
    for entry in entries {
        let refuse = |why: String| FoldError {
            idx: entry.idx,
            kind: entry.kind.clone(),
            pod_id: entry.pod_id.clone(),
            incarnation: entry.incarnation,
            why,
        };
        if entry.idx <= last_idx {
            return Err(refuse(format!("it stands after event {last_idx}")));
        }
        // Nobody knows what an unknown kind does to the roster.
        let kind = EventKind::parse(&entry.kind).ok_or_else(|| refuse("no such kind".to_owned()))?;
        if kind == EventKind::Snapshot {
            if last_idx > i64::MIN {
                return Err(refuse("a snapshot can only be the first".to_owned()));
            }
            state = restore(&entry.detail).map_err(refuse)?;
        } else {
            step(&mut state, kind, entry).map_err(refuse)?;
        }
        last_idx = entry.idx;
    }
    Ok(state)
}

fn restore(detail: &Value) -> Result<FoldState, String> {
    let snapshot = RosterSnapshot::deserialize(detail).map_err(|e| format!("its detail is no roster: {e}"))?;
    let mut state = FoldState { roster: Roster::new(), suspected: snapshot.suspected };
    for SnapshotPod { pod_id, incarnation, draining, session, cordoned } in snapshot.roster {
        if state.roster.insert(pod_id.clone(), Member { incarnation, draining, cordoned, session }).is_some() {
            return Err(format!("it has two pods named {pod_id}"));
        }
    }
    Ok(state)
}

fn step(state: &mut FoldState, kind: EventKind, entry: &LogEntry) -> Result<(), String> {
    let FoldState { roster, suspected } = state;
    match kind {
        EventKind::Joined => {
            let replaced = entry.detail.get("replaced").and_then(Value::as_str).and_then(|s| s.parse::<Uuid>().ok());
            let present = roster.get(&entry.pod_id).map(|m| m.incarnation);
            if replaced.map(Incarnation::from) != present {
                return Err(format!("it replaces {replaced:?}, but the roster has {present:?} under that name"));
            }
            // A process that registers again takes its cordon along.
            let cordoned = entry.detail.get("cordoned_by").is_some_and(Value::is_string);
            let joined = Member { incarnation: entry.incarnation, draining: false, cordoned, session: 1 };
            roster.insert(entry.pod_id.clone(), joined);
        }
        // These are about runs, or about strangers that hold a pod's lock. The pod may have been buried since.
        EventKind::Claimed
        | EventKind::Quarantined
        | EventKind::RunFailed
        | EventKind::ForeignLock
        | EventKind::WorkersInactive
        | EventKind::WorkersActive => {}
        EventKind::Draining => member(roster, entry)?.draining = true,
        EventKind::Cordoned => member(roster, entry)?.cordoned = true,
        EventKind::Uncordoned => member(roster, entry)?.cordoned = false,
        EventKind::Returned => {
            let member = member(roster, entry)?;
            let session = entry.detail.get("session").and_then(Value::as_i64).ok_or("it has no session number")?;
            if session <= member.session {
                return Err(format!("session {session} does not come after session {}", member.session));
            }
            member.session = session;
        }
        EventKind::Detached | EventKind::Evicted | EventKind::Held => _ = member(roster, entry)?,
        EventKind::Suspected => {
            member(roster, entry)?;
            // Some folded logs lack the index, which is no part of the roster.
            if let Some(index) = entry.detail.get("event_index").and_then(Value::as_i64) {
                suspected.insert(entry.incarnation, index);
            }
        }
        EventKind::Buried => {
            member(roster, entry)?;
            roster.remove(&entry.pod_id);
        }
        EventKind::Snapshot => return Err("a snapshot is no step".to_owned()),
    }
    Ok(())
}

fn member<'a>(roster: &'a mut Roster, entry: &LogEntry) -> Result<&'a mut Member, String> {
    let member = roster.get_mut(&entry.pod_id).filter(|member| member.incarnation == entry.incarnation);
    member.ok_or_else(|| "that incarnation is not in the roster".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(idx: i64, kind: &str, pod: &str, incarnation: Incarnation, detail: Value) -> LogEntry {
        LogEntry { idx, kind: kind.into(), pod_id: PodId::new(pod).expect("a name"), incarnation, detail }
    }

    #[test]
    fn a_life_folds_to_the_roster() {
        let (a, b, a2) = (Incarnation::generate(), Incarnation::generate(), Incarnation::generate());
        let none = || json!({});
        let log = [
            entry(1, "joined", "a", a, none()),
            entry(2, "joined", "b", b, none()),
            entry(3, "held", "a", a, json!({"reason": "connection_broken"})),
            entry(4, "detached", "a", a, none()),
            entry(5, "returned", "a", a, json!({"session": 2})),
            entry(6, "claimed", "b", b, json!({"runs": 3})),
            entry(7, "joined", "a", a2, json!({"replaced": a.to_string()})),
            entry(8, "draining", "b", b, none()),
        ];
        let roster = fold(&log).expect("legal");
        let member = |incarnation, draining, session| Member { incarnation, draining, cordoned: false, session };
        assert_eq!(roster.values().copied().collect::<Vec<_>>(), [member(a2, false, 1), member(b, true, 1)]);
        let mut more = log.to_vec();
        more.push(entry(9, "buried", "b", b, none()));
        for (idx, kind) in (10..).zip(["claimed", "quarantined", "run_failed", "foreign_lock"]) {
            more.push(entry(idx, kind, "b", b, none()));
        }
        assert_eq!(fold(&more).expect("legal").len(), 1, "who tells of runs or strangers may have been buried since");
    }

    /// At each position, two folds give the same roster: the whole log, and the snapshot of the entries up to there
    /// followed by the rest.
    #[test]
    fn a_snapshot_stands_for_all_that_came_before_it() {
        let [a, b, c, a2] = std::array::from_fn(|_| Incarnation::generate());
        let none = || json!({});
        let log = [
            entry(1, "joined", "a", a, none()),
            entry(3, "joined", "b", b, none()),
            entry(4, "suspected", "a", a, json!({"event_index": 7, "looks": 3})),
            entry(5, "detached", "a", a, none()),
            entry(6, "returned", "a", a, json!({"session": 2})),
            entry(7, "suspected", "b", b, json!({"event_index": 9})),
            entry(8, "joined", "c", c, none()),
            entry(9, "buried", "b", b, none()),
            entry(10, "claimed", "c", c, none()),
            entry(11, "draining", "c", c, none()),
            entry(12, "cordoned", "a", a, none()),
            entry(13, "joined", "a", a2, json!({"replaced": a.to_string()})),
            entry(14, "cordoned", "c", c, none()),
            entry(15, "uncordoned", "c", c, none()),
        ];
        for end in 1..=log.len() {
            let whole = fold(&log[..end]).expect("legal");
            for cut in 1..=end {
                let detail = serde_json::to_value(snapshot(&log[..cut]).expect("legal")).expect("JSON");
                let mut pruned = vec![entry(log[cut - 1].idx, "snapshot", "x", c, detail)];
                pruned.extend_from_slice(&log[cut..end]);
                assert_eq!(fold(&pruned).as_ref(), Ok(&whole), "cut after {cut} of {end}");
                // A second snapshot, on top of the first.
                assert_eq!(snapshot(&pruned), snapshot(&log[..end]), "cut after {cut} of {end}");
            }
        }
        assert_eq!(snapshot(&log[..6]).expect("legal").suspected, [(a, 7), (b, 9)].into());
        assert_eq!(snapshot(&log[..8]).expect("legal").suspected, [(a, 7)].into(), "the buried are forgotten");
        assert_eq!(snapshot([]), Ok(RosterSnapshot::default()));
    }

    #[test]
    fn a_cordon_lasts_until_it_is_lifted_and_only_the_same_process_takes_it_along() {
        let [a, b, c] = std::array::from_fn(|_| Incarnation::generate());
        let replaces = |old: Incarnation| json!({"replaced": old.to_string()});
        let taken_along = json!({"replaced": a.to_string(), "cordoned_by": "operator"});
        let log = [
            (entry(1, "joined", "a", a, json!({})), false),
            (entry(2, "cordoned", "a", a, json!({})), true),
            (entry(3, "returned", "a", a, json!({"session": 2})), true),
            (entry(4, "joined", "a", b, taken_along), true),
            (entry(5, "uncordoned", "a", b, json!({"cordoned_by": "operator"})), false),
            (entry(6, "cordoned", "a", b, json!({})), true),
            (entry(7, "joined", "a", c, replaces(b)), false),
        ];
        for end in 1..=log.len() {
            let (last, cordoned) = &log[end - 1];
            let roster = fold(log[..end].iter().map(|(entry, _)| entry)).expect("legal");
            assert_eq!(roster.values().map(|m| m.cordoned).collect::<Vec<_>>(), [*cordoned], "after {last:?}");
        }
        let kept = |end: usize| {
            serde_json::to_value(snapshot(log[..end].iter().map(|(e, _)| e)).expect("legal")).expect("JSON")
        };
        assert_eq!(kept(2)["roster"][0]["cordoned"], true);
        assert_eq!(kept(1)["roster"][0].get("cordoned"), None, "older versions read it");
    }

    #[test]
    fn a_snapshot_that_is_damaged_or_not_the_first_is_an_error() {
        let a = Incarnation::generate();
        let kept = json!({"pod_id": "a", "incarnation": a, "draining": false, "session": 1});
        let good = json!({"roster": [kept], "suspected": {}});
        fold([&entry(5, "snapshot", "x", a, good.clone())]).expect("legal");
        let joined = entry(1, "joined", "a", a, json!({}));
        let error = fold([&joined, &entry(2, "snapshot", "x", a, good)]).expect_err("not the first");
        assert_eq!(error.idx, 2);
        for detail in [
            json!({}),
            json!(null),
            json!({"roster": [kept, kept], "suspected": {}}),
            json!({"roster": [{"pod_id": "a"}], "suspected": {}}),
            json!({"roster": [kept], "suspected": {}, "newer": 1}),
        ] {
            fold([&entry(5, "snapshot", "x", a, detail.clone())]).expect_err(&detail.to_string());
        }
    }

    #[test]
    fn an_illegal_step_is_an_error_never_skipped() {
        let (a, other) = (Incarnation::generate(), Incarnation::generate());
        let joined = entry(1, "joined", "a", a, json!({}));
        let cases = [
            entry(1, "draining", "a", a, json!({})),
            entry(2, "joined", "a", other, json!({})),
            entry(2, "joined", "a", other, json!({"replaced": other.to_string()})),
            entry(2, "buried", "a", other, json!({})),
            entry(2, "returned", "a", a, json!({"session": 1})),
            entry(2, "returned", "a", a, json!({})),
            entry(2, "held", "a", other, json!({})),
            entry(2, "cordoned", "a", other, json!({})),
            entry(2, "uncordoned", "a", other, json!({})),
            entry(2, "vanished", "a", a, json!({})),
        ];
        for case in cases {
            let error = fold([&joined, &case]).expect_err("illegal");
            assert_eq!(error.kind, case.kind, "{error}");
        }
    }
}
