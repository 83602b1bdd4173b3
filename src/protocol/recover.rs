//! What a recovery pass does: which runs a pod claims, which of its own it takes up again, which it has lost.
//!
//! Authority: none. The plan is a wish; each write repeats its condition, and the rows that come back are what happened.
//! A pass takes no input but what it loads, can run at any time and any number of times (L6), and never claims a run
//! that this process already runs.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{Fence, Incarnation, RunId};

/// A running run that names this incarnation, or that nobody in the roster owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The run.
    pub run_id: RunId,
    /// Its owner as read; the claim expects to find it unchanged.
    pub owner: Option<Incarnation>,
    /// Its fence as read.
    pub fence: Fence,
    /// It was inserted for this pod in a caller's transaction and was never begun.
    pub unbegun: bool,
}

/// What a pass plans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Orphans to claim, at most as many as there is room.
    pub claim: Vec<Candidate>,
    /// Own rows that no task of this process runs: taken up by a claim from itself, under a new fence.
    pub adopt: Vec<Candidate>,
    /// Own rows for which there is no room: given back, so that another may take them.
    pub release: Vec<Candidate>,
    /// Runs in memory whose row no longer names this incarnation and that fence: read back, then stopped.
    pub check: Vec<RunId>,
    /// Own rows seen for the first time without a task; adopted if the next pass sees them again.
    pub unclaimed: BTreeSet<RunId>,
    /// Something had to be left for want of room: scan again when some frees.
    pub short_of_room: bool,
}

/// What the process knew before it loaded the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Runs with a task, and the fence it works under.
    pub running: BTreeMap<RunId, Fence>,
    /// Runs whose start or claim is under way: their rows may or may not be there yet.
    pub pending: BTreeSet<RunId>,
    /// Own rows that the last pass saw without a task.
    pub seen_unclaimed: BTreeSet<RunId>,
    /// How many more runs may be begun.
    pub room: usize,
}

/// Plans one pass for the incarnation `own` from what was known *before* the load and what the load brought.
#[must_use]
pub fn plan(own: Incarnation, memory: &Memory, rows: &[Candidate]) -> Plan {
    let mut plan = Plan::default();
    let mut room = memory.room;
    let mut take = |list: &mut Vec<Candidate>, row: &Candidate, short: &mut bool| {
        if room > 0 {
            room -= 1;
            list.push(*row);
        } else {
            *short = true;
        }
    };
    let mut still_ours = BTreeSet::new();
    for row in rows {
        let in_memory = memory.running.get(&row.run_id);
        if row.owner == Some(own) && in_memory == Some(&row.fence) {
            still_ours.insert(row.run_id);
        } else if in_memory.is_some() || memory.pending.contains(&row.run_id) {
            // This process works on it under another fence, or is about to: first that has to end.
        } else if row.owner == Some(own) {
            if row.unbegun || memory.seen_unclaimed.contains(&row.run_id) {
                let mut full = false;
                take(&mut plan.adopt, row, &mut full);
                if full {
                    plan.release.push(*row);
                }
            } else {
                plan.unclaimed.insert(row.run_id);
            }
        } else {
            take(&mut plan.claim, row, &mut plan.short_of_room);
        }
    }
    plan.check = memory.running.keys().filter(|id| !still_ours.contains(id)).copied().collect();
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(owner: Option<Incarnation>, fence: i64) -> Candidate {
        Candidate { run_id: RunId::generate(), owner, fence: fence.into(), unbegun: false }
    }

    fn ids(candidates: &[Candidate]) -> Vec<RunId> {
        candidates.iter().map(|c| c.run_id).collect()
    }

    #[test]
    fn orphans_are_claimed_up_to_the_room_and_the_rest_is_remembered() {
        let (own, dead) = (Incarnation::generate(), Incarnation::generate());
        let rows = [row(Some(dead), 3), row(None, 0), row(Some(dead), 5)];
        let all = plan(own, &Memory { room: 9, ..Memory::default() }, &rows);
        assert_eq!(ids(&all.claim), ids(&rows));
        assert!(!all.short_of_room && all.adopt.is_empty() && all.check.is_empty());
        let two = plan(own, &Memory { room: 2, ..Memory::default() }, &rows);
        assert_eq!(ids(&two.claim), ids(&rows[..2]));
        assert!(two.short_of_room);
        let none = plan(own, &Memory::default(), &rows);
        assert!(none.claim.is_empty() && none.short_of_room);
    }

    #[test]
    fn an_own_row_without_a_task_is_adopted_when_seen_twice() {
        let own = Incarnation::generate();
        let lost_reply = row(Some(own), 7);
        let memory = Memory { room: 9, ..Memory::default() };
        let first = plan(own, &memory, &[lost_reply]);
        assert!(first.adopt.is_empty() && first.unclaimed.contains(&lost_reply.run_id));
        let memory = Memory { seen_unclaimed: first.unclaimed, ..memory };
        let second = plan(own, &memory, &[lost_reply]);
        assert_eq!(ids(&second.adopt), [lost_reply.run_id]);
        assert!(second.unclaimed.is_empty());
    }

    #[test]
    fn an_own_row_for_which_there_is_no_room_is_given_back() {
        let own = Incarnation::generate();
        let started = Candidate { unbegun: true, ..row(Some(own), 7) };
        let plan = plan(own, &Memory::default(), &[started]);
        assert_eq!((ids(&plan.release), plan.adopt.len()), (vec![started.run_id], 0));
    }

    #[test]
    fn a_run_inserted_in_a_callers_transaction_is_taken_up_at_once() {
        let own = Incarnation::generate();
        let started = Candidate { unbegun: true, ..row(Some(own), 7) };
        let plan = plan(own, &Memory { room: 1, ..Memory::default() }, &[started]);
        assert_eq!(ids(&plan.adopt), [started.run_id]);
    }

    #[test]
    fn a_run_of_this_process_is_never_claimed_again() {
        let (own, dead) = (Incarnation::generate(), Incarnation::generate());
        let winding_down = row(Some(dead), 3);
        let starting = row(None, 0);
        let memory = Memory {
            running: BTreeMap::from([(winding_down.run_id, Fence::from(3))]),
            pending: BTreeSet::from([starting.run_id]),
            room: 9,
            ..Memory::default()
        };
        let plan = plan(own, &memory, &[winding_down, starting]);
        assert!(plan.claim.is_empty() && plan.adopt.is_empty());
        assert_eq!(plan.check, [winding_down.run_id]);
    }

    #[test]
    fn a_run_in_memory_whose_row_moved_on_is_checked() {
        let own = Incarnation::generate();
        let (kept, refenced, gone) = (row(Some(own), 1), row(Some(own), 9), RunId::generate());
        let running = BTreeMap::from([(kept.run_id, 1.into()), (refenced.run_id, 2.into()), (gone, 3.into())]);
        let plan = plan(own, &Memory { running, room: 9, ..Memory::default() }, &[kept, refenced]);
        let mut expected = vec![refenced.run_id, gone];
        expected.sort_unstable();
        assert_eq!(plan.check, expected);
        assert!(plan.adopt.is_empty(), "its old task has to end first");
    }
}
