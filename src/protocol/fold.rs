//! The roster, rebuilt from the event log.
//!
//! Folding `studio_pod_events` from its start gives the rows of `studio_pods`. An event that cannot follow what came
//! before is an error and never passed over: it would mean that the log or the roster was written by something else.

use std::collections::BTreeMap;

use serde_json::Value;
use uuid::Uuid;

use crate::id::{Incarnation, PodId};

/// One entry of the log, as far as the fold needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its position.
    pub idx: i64,
    /// What happened.
    pub kind: String,
    /// To which pod.
    pub pod_id: PodId,
    /// To which incarnation of it.
    pub incarnation: Incarnation,
    /// `joined` names in `replaced` the incarnation whose place it took; `returned` its `session`.
    pub detail: Value,
}

/// One pod of a folded roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its registration.
    pub incarnation: Incarnation,
    /// Whether it has begun its clean stop.
    pub draining: bool,
    /// How many liveness sessions it has had.
    pub session: i64,
}

/// The roster: each name at most once.
pub type Roster = BTreeMap<PodId, Member>;

/// An entry that cannot follow those before it.
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
    /// What is wrong.
    pub why: String,
}

/// Folds a log, given in order and from its start.
///
/// # Errors
///
/// The first entry that is out of order, of an unknown kind, or an illegal step.
pub fn fold<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<Roster, FoldError> {
    let mut roster = Roster::new();
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
        last_idx = entry.idx;
        step(&mut roster, entry).map_err(refuse)?;
    }
    Ok(roster)
}

fn step(roster: &mut Roster, entry: &Entry) -> Result<(), String> {
    if entry.kind == "joined" {
        let replaced = entry.detail.get("replaced").and_then(Value::as_str).and_then(|s| s.parse::<Uuid>().ok());
        let present = roster.get(&entry.pod_id).map(|m| m.incarnation);
        if replaced.map(Incarnation::from) != present {
            return Err(format!("it replaces {replaced:?}, but the roster has {present:?} under that name"));
        }
        roster.insert(entry.pod_id.clone(), Member { incarnation: entry.incarnation, draining: false, session: 1 });
        return Ok(());
    }
    // A claim is about runs: its claimer may have been buried since.
    if matches!(entry.kind.as_str(), "claimed" | "quarantined") {
        return Ok(());
    }
    let member = roster
        .get_mut(&entry.pod_id)
        .filter(|m| m.incarnation == entry.incarnation)
        .ok_or_else(|| "that incarnation is not in the roster".to_owned())?;
    match entry.kind.as_str() {
        "draining" => member.draining = true,
        "returned" => {
            let session = entry.detail.get("session").and_then(Value::as_i64).ok_or("it has no session number")?;
            if session <= member.session {
                return Err(format!("session {session} does not come after session {}", member.session));
            }
            member.session = session;
        }
        "detached" | "suspected" | "evicted" => {}
        "buried" => {
            roster.remove(&entry.pod_id);
        }
        _ => return Err("no such kind".to_owned()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(idx: i64, kind: &str, pod: &str, incarnation: Incarnation, detail: Value) -> Entry {
        Entry { idx, kind: kind.into(), pod_id: PodId::new(pod).expect("a name"), incarnation, detail }
    }

    #[test]
    fn a_life_folds_to_the_roster() {
        let (a, b, a2) = (Incarnation::generate(), Incarnation::generate(), Incarnation::generate());
        let none = || json!({});
        let log = [
            entry(1, "joined", "a", a, none()),
            entry(2, "joined", "b", b, none()),
            entry(4, "detached", "a", a, none()),
            entry(5, "returned", "a", a, json!({"session": 2})),
            entry(6, "claimed", "b", b, json!({"runs": 3})),
            entry(7, "joined", "a", a2, json!({"replaced": a.to_string()})),
            entry(8, "draining", "b", b, none()),
        ];
        let roster = fold(&log).expect("legal");
        let member = |incarnation, draining, session| Member { incarnation, draining, session };
        assert_eq!(roster.values().copied().collect::<Vec<_>>(), [member(a2, false, 1), member(b, true, 1)]);
        let mut more = log.to_vec();
        more.push(entry(9, "buried", "b", b, none()));
        more.push(entry(10, "claimed", "b", b, none()));
        assert_eq!(fold(&more).expect("legal").len(), 1, "a claimer may have been buried since");
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
            entry(2, "vanished", "a", a, json!({})),
        ];
        for case in cases {
            let error = fold([&joined, &case]).expect_err("illegal");
            assert_eq!(error.kind, case.kind, "{error}");
        }
    }
}
