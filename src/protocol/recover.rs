//! What a recovery pass does: which runs a pod claims, which of its own runs it adopts, and which it has lost.
//!
//! Authority: none. The plan is a wish. Each write repeats its condition, and the returned rows show what happened. A
//! pass needs no input but what it loads, and can run at any time and any number of times (L6). It never claims a run
//! that this process already runs.
//!
//! A pod takes orphans up to its room, both in total and for each kind. It takes at most its share of them
//! ([`super::share`]), and one suspect at a time ([`super::poison`]). It leaves the others to the other pods. If an
//! orphan is still there after [`Rules::share_wait`], the others could not take it. Then this pod takes it too. So a
//! share delays an orphan, and keeps no pod from taking it.
//!
//! A load usually returns about as many orphans as the pod takes. A pod that takes none of many loads all of them next
//! ([`must_see_all`]), because `share_wait` counts from when it has seen an orphan.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::Moment;
use super::poison::{self, LastPod, Suspicion};
use super::share::FleetLoad;
use crate::id::{Fence, Incarnation, RunId};

/// A running run that names this incarnation, or that nobody in the roster owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The run.
    pub run_id: RunId,
    /// Which handler it needs.
    pub kind: Arc<str>,
    /// The owner as read. The claim expects the same owner.
    pub owner: Option<Incarnation>,
    /// The fence as read.
    pub fence: Fence,
    /// No attempt at the run has begun. If this pod owns such a row, the row was inserted in a caller's transaction.
    pub unbegun: bool,
    /// How many owners in a row crashed under the run, including the last one if it crashed.
    pub crashes: u32,
    /// Whether the last owner crashed.
    pub crashed: bool,
}

/// The result of a load: this pod's own rows, and orphans. The orphans begin at this pod's place among all orphans, the
/// oldest first, and go round at the end. So pods that load at the same time do not compete for the same ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The rows.
    pub rows: Vec<Candidate>,
    /// The pods that share the orphans. `None`: there are no orphans, or the sharing pods are unknown. The pod then
    /// takes what it has room for.
    pub fleet: Option<FleetLoad>,
    /// The names of the pods in `fleet`, in the same order.
    pub takers: Vec<String>,
    /// How many more orphans there are than `rows` has.
    pub unlisted: usize,
    /// The kinds of all orphans without an owner, also of those that `rows` does not have.
    pub ownerless: Vec<Arc<str>>,
}

/// The settings that a plan depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// After how many crashes in a row a run is quarantined; 0: never.
    pub max_crashes: u32,
    /// How long orphans of an owner that is gone are left alone.
    pub claim_delay: Duration,
    /// How long this pod leaves the orphans beyond its share to the others: long enough for a pass of each of them.
    pub share_wait: Duration,
    /// The lease.
    pub lease: Duration,
}

/// The state of this process before it loaded the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The runs that have a task, each with the fence that the task works under.
    pub running: BTreeMap<RunId, Fence>,
    /// The runs whose start or claim is in progress. Their rows may or may not be there yet.
    pub pending: BTreeSet<RunId>,
    /// How many more runs may begin.
    pub room: usize,
    /// How many more runs may begin of each kind that has its own limit.
    pub room_of: BTreeMap<Arc<str>, usize>,
    /// The runs with a task that were suspects when they were claimed, each with the fence of that claim.
    pub suspects: BTreeMap<RunId, Fence>,
    /// Incarnations that this pod has seen alive.
    pub companions: Arc<BTreeSet<Incarnation>>,
    /// What the last pass saw.
    pub last: Sightings,
}

/// What a pass remembers for the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sightings {
    /// Own rows without a task. The next pass adopts them if it sees them again.
    pub unclaimed: BTreeSet<RunId>,
    /// Orphans that this pod did not take, each with the time since when.
    pub left: BTreeMap<RunId, Moment>,
    /// Owners of orphans that are gone from the roster, each with the time since when this pod knows it. For
    /// `claim_delay`.
    pub gone: BTreeMap<Incarnation, Moment>,
    /// Since when this pod is the only one that can take the orphans that were loaded. `None`: other pods can.
    pub last_pod: Option<Moment>,
    /// Whether an orphan that this pod did not take still names an owner.
    pub left_of_others: bool,
}

impl Sightings {
    /// Whether the next pass must look for orphans that still name an owner, because this one left some.
    #[must_use]
    pub fn names_owners(&self) -> bool {
        self.left_of_others || !self.gone.is_empty()
    }
}

/// What a pass plans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Orphans to claim, at most as many as there is room for.
    pub claim: Vec<Candidate>,
    /// Own rows that no task of this process runs. The pod claims them from itself, under a new fence.
    pub adopt: Vec<Candidate>,
    /// Own rows without room. The pod releases them, so that another pod can claim them.
    pub release: Vec<Candidate>,
    /// Orphans that crashed all other pods that could take them. The pod claims them with [`poison::LAST_POD_BEARS`] as
    /// the limit, which quarantines them.
    pub give_up: Vec<Candidate>,
    /// Runs in memory whose row no longer names this incarnation with that fence. The pod reads them again, then stops
    /// them.
    pub check: Vec<RunId>,
    /// Suspects of this process that have made progress, and are no longer suspects.
    pub cleared: Vec<RunId>,
    /// What to remember for the next pass.
    pub sightings: Sightings,
    /// Something was left because of missing room or because of a suspect. Run a pass again when a run ends.
    pub short_of_room: bool,
    /// How many loaded orphans no pod may take yet: their owner has not been gone for `claim_delay`, or this pod is the
    /// last one that they have not taken down.
    pub withheld: usize,
    /// When to run the next pass: then this pod may take something that it left for now.
    pub again: Option<Duration>,
}

/// The room that is left while a plan is made.
struct Room {
    all: usize,
    of: BTreeMap<Arc<str>, usize>,
}

impl Room {
    fn has(&self, kind: &str) -> bool {
        self.all > 0 && self.of.get(kind) != Some(&0)
    }

    fn take(&mut self, kind: &str) -> bool {
        let has = self.has(kind);
        if has {
            self.all -= 1;
            if let Some(left) = self.of.get_mut(kind) {
                *left -= 1;
            }
        }
        has
    }
}

/// Plans one pass for the incarnation `own` at `now`. `memory` is the state *before* the load, `seen` the result of the
/// load.
#[must_use]
pub fn plan(own: Incarnation, rules: &Rules, memory: &Memory, seen: &Seen, now: Moment) -> Plan {
    let mut plan = Plan::default();
    let mut still_ours = BTreeSet::new();
    let (mut without_task, mut orphans) = (Vec::new(), Vec::new());
    for row in &seen.rows {
        let in_memory = memory.running.get(&row.run_id);
        if row.owner == Some(own) && in_memory == Some(&row.fence) {
            still_ours.insert(row.run_id);
            if memory.suspects.get(&row.run_id) == Some(&row.fence) && !is_suspect(rules, row) {
                plan.cleared.push(row.run_id);
            }
        } else if in_memory.is_some() || memory.pending.contains(&row.run_id) {
            // This process works on it under another fence, or is about to. That work must end first.
        } else if row.owner == Some(own) {
            without_task.push(row);
        } else {
            orphans.push(row);
        }
    }
    plan.check = memory.running.keys().filter(|id| !still_ours.contains(id)).copied().collect();
    let room = Room { all: memory.room, of: memory.room_of.clone() };
    let has_suspect = memory.suspects.keys().any(|id| !plan.cleared.contains(id));
    if seen.fleet.as_ref().is_some_and(|fleet| fleet.takers.len() == 1) {
        plan.sightings.last_pod = Some(memory.last.last_pod.unwrap_or(now));
    }
    let mut planner = Planner { rules, memory, now, room, has_suspect, plan };
    without_task.into_iter().for_each(|row| planner.take_up(row));
    let seen_orphans = orphans.len();
    orphans.retain(|row| planner.is_due(row) && planner.may_be_borne(row));
    planner.plan.withheld = seen_orphans - orphans.len();
    planner.claim(orphans, seen.fleet.as_ref());
    planner.plan
}

/// Whether the next load must return all orphans, and not only as many as this pod takes. `saw_all`: the last load was
/// such a load. This pod waits for others to take orphans that it has not seen, so it must note since when they are
/// there. While it takes orphans itself, it reads no more than it takes, and all pods together read each orphan once.
#[must_use]
pub fn must_see_all(plan: &Plan, seen: &Seen, saw_all: bool) -> bool {
    plan.again.is_some() && (saw_all || (seen.unlisted > 0 && plan.claim.is_empty()))
}

/// The shortest wait before a look back ([`looks_back_after`]): 20 ms. Shorter: the other pods have not claimed yet.
pub const LOOK_BACK_MIN: Duration = Duration::from_millis(20);

/// When a pod looks back: how soon a pass follows a pass that claimed all that it wanted, and took `took`. Other pods
/// claimed at the same time, and may have left some of their runs without a notice. They claim for about as long as this
/// pod did. An earlier look reads runs that they are about to claim, and takes the server's time from those claims. The
/// look is no later than `most`, or [`LOOK_BACK_MIN`] if that is longer, also if this pass was slow for a reason of its own.
#[must_use]
pub fn looks_back_after(took: Duration, most: Duration) -> Duration {
    took.min(most).max(LOOK_BACK_MIN)
}

fn is_suspect(rules: &Rules, row: &Candidate) -> bool {
    poison::judge(row.crashes, row.crashed, rules.max_crashes) == Suspicion::Suspect
}

/// A plan in the making.
struct Planner<'a> {
    rules: &'a Rules,
    memory: &'a Memory,
    now: Moment,
    room: Room,
    has_suspect: bool,
    plan: Plan,
}

impl Planner<'_> {
    /// Whether there is room for the run, and no other suspect if the run is one. If so, takes up the room.
    fn takes(&mut self, row: &Candidate) -> bool {
        let suspect = is_suspect(self.rules, row);
        if (suspect && self.has_suspect) || !self.room.take(&row.kind) {
            return false;
        }
        self.has_suspect |= suspect;
        true
    }

    /// Plans what to do with an own row that has no task.
    fn take_up(&mut self, row: &Candidate) {
        if !row.unbegun && !self.memory.last.unclaimed.contains(&row.run_id) {
            self.plan.sightings.unclaimed.insert(row.run_id);
        } else if self.takes(row) {
            self.plan.adopt.push(row.clone());
        } else {
            self.plan.release.push(row.clone());
        }
    }

    /// Whether an orphan's owner has been gone for `claim_delay`, by our own clock.
    fn is_due(&mut self, row: &Candidate) -> bool {
        let Some(owner) = row.owner.filter(|_| !self.rules.claim_delay.is_zero()) else { return true };
        let since = self.memory.last.gone.get(&owner).copied().unwrap_or(self.now);
        self.plan.sightings.gone.insert(owner, since);
        let wait = (since + self.rules.claim_delay).saturating_sub(self.now);
        if !wait.is_zero() {
            self.look_again_after(wait);
        }
        wait.is_zero()
    }

    /// Whether the usual rule lets this pod take an orphan. The last pod of a fleet may not take it if it saw the other
    /// pods crash with the run. It waits for another pod, and then plans to quarantine the run.
    fn may_be_borne(&mut self, row: &Candidate) -> bool {
        let saw_its_owner = row.owner.is_some_and(|owner| self.memory.companions.contains(&owner));
        let Some(since) = self.plan.sightings.last_pod.filter(|_| saw_its_owner) else { return true };
        let last_for = self.now.saturating_sub(since);
        match poison::last_pod(row.crashes, row.crashed, self.rules.max_crashes, last_for, self.rules.lease) {
            LastPod::AsEver => return true,
            LastPod::Waits(wait) => self.look_again_after(wait),
            LastPod::GivesUp => self.plan.give_up.push(row.clone()),
        }
        false
    }

    /// Chooses orphans: first those that no pod took for a while, then this pod's share of the rest.
    fn claim(&mut self, orphans: Vec<&Candidate>, fleet: Option<&FleetLoad>) {
        let last_left = &self.memory.last.left;
        let since = |row: &Candidate| last_left.get(&row.run_id).copied().unwrap_or(self.now);
        let wait = |row: &Candidate| (since(row) + self.rules.share_wait).saturating_sub(self.now);
        let nobody_took = |row: &&Candidate| last_left.contains_key(&row.run_id) && wait(row).is_zero();
        let (mut list, mut fresh): (Vec<_>, Vec<_>) = orphans.into_iter().partition(nobody_took);
        let mut share = fleet.map_or(usize::MAX, FleetLoad::share);
        let overdue = list.len();
        list.append(&mut fresh);
        let list: Vec<_> = list.into_iter().map(|row| (row, since(row), wait(row))).collect();
        for (i, (row, since, wait)) in list.into_iter().enumerate() {
            let is_others = share == 0 && i >= overdue;
            if !is_others && self.takes(row) {
                share = share.saturating_sub(1);
                self.plan.claim.push(row.clone());
                continue;
            }
            self.plan.sightings.left.insert(row.run_id, since);
            self.plan.sightings.left_of_others |= row.owner.is_some();
            if is_others && self.room.has(&row.kind) {
                self.look_again_after(wait);
            } else {
                self.plan.short_of_room = true;
            }
        }
    }

    fn look_again_after(&mut self, wait: Duration) {
        self.plan.again = Some(self.plan.again.map_or(wait, |again| again.min(wait)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::share::Taker;
    use super::*;

    const RULES: Rules = Rules {
        max_crashes: 3,
        claim_delay: Duration::ZERO,
        share_wait: Duration::from_secs(3),
        lease: Duration::from_secs(10),
    };

    fn row(owner: Option<Incarnation>, fence: i64) -> Candidate {
        let (run_id, kind) = (RunId::generate(), Arc::from("k"));
        Candidate { run_id, kind, owner, fence: fence.into(), unbegun: false, crashes: 0, crashed: false }
    }

    /// The plan for these rows, without other pods that share them.
    fn plan(own: Incarnation, memory: &Memory, rows: &[Candidate]) -> Plan {
        super::plan(own, &RULES, memory, &Seen { rows: rows.to_vec(), ..Seen::default() }, Moment::ZERO)
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
        let first = plan(own, &memory, std::slice::from_ref(&lost_reply));
        assert!(first.adopt.is_empty() && first.sightings.unclaimed.contains(&lost_reply.run_id));
        let memory = Memory { last: first.sightings, ..memory };
        let second = plan(own, &memory, std::slice::from_ref(&lost_reply));
        assert_eq!(ids(&second.adopt), [lost_reply.run_id]);
        assert!(second.sightings.unclaimed.is_empty());
    }

    #[test]
    fn an_own_row_for_which_there_is_no_room_is_given_back() {
        let own = Incarnation::generate();
        let started = Candidate { unbegun: true, ..row(Some(own), 7) };
        let plan = plan(own, &Memory::default(), std::slice::from_ref(&started));
        assert_eq!((ids(&plan.release), plan.adopt.len()), (vec![started.run_id], 0));
    }

    #[test]
    fn a_run_inserted_in_a_callers_transaction_is_taken_up_at_once() {
        let own = Incarnation::generate();
        let started = Candidate { unbegun: true, ..row(Some(own), 7) };
        let plan = plan(own, &Memory { room: 1, ..Memory::default() }, std::slice::from_ref(&started));
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
        let plan = plan(own, &memory, &[winding_down.clone(), starting]);
        assert!(plan.claim.is_empty() && plan.adopt.is_empty());
        assert_eq!(plan.check, [winding_down.run_id]);
    }

    #[test]
    fn a_run_in_memory_whose_row_moved_on_is_checked() {
        let own = Incarnation::generate();
        let (kept, refenced, gone) = (row(Some(own), 1), row(Some(own), 9), RunId::generate());
        let running = BTreeMap::from([(kept.run_id, 1.into()), (refenced.run_id, 2.into()), (gone, 3.into())]);
        let plan = plan(own, &Memory { running, room: 9, ..Memory::default() }, &[kept, refenced.clone()]);
        let mut expected = vec![refenced.run_id, gone];
        expected.sort_unstable();
        assert_eq!(plan.check, expected);
        assert!(plan.adopt.is_empty(), "its old task has to end first");
    }

    fn crashed(times: u32) -> Candidate {
        Candidate { crashes: times, crashed: true, ..row(Some(Incarnation::generate()), 3) }
    }

    #[test]
    fn a_pod_takes_one_suspect_at_a_time_and_poison_and_others_beside_it() {
        let own = Incarnation::generate();
        let rows = [crashed(2), row(None, 0), crashed(2), crashed(3), crashed(1), crashed(2)];
        let all = plan(own, &Memory { room: 9, ..Memory::default() }, &rows);
        let expected = [0, 1, 3, 4].map(|i: usize| rows[i].run_id);
        assert_eq!(ids(&all.claim), expected);
        assert!(all.short_of_room, "the others are looked at again when a run ends");
        let has_one = Memory {
            running: BTreeMap::from([(rows[0].run_id, 9.into())]),
            suspects: BTreeMap::from([(rows[0].run_id, 9.into())]),
            room: 9,
            ..Memory::default()
        };
        let ours = Candidate { owner: Some(own), fence: 9.into(), crashes: 2, crashed: false, ..rows[0].clone() };
        let beside = plan(own, &has_one, &[std::slice::from_ref(&ours), &rows[1..]].concat());
        assert_eq!(ids(&beside.claim), expected[1..]);
        // The run may have been claimed after the load. Then its row is missing, or not ours yet.
        assert_eq!(ids(&plan(own, &has_one, &rows[1..]).claim), expected[1..]);
        let saved = Candidate { crashes: 0, ..ours };
        let after_progress = plan(own, &has_one, &[&[saved], &rows[1..]].concat());
        assert_eq!(after_progress.cleared, [rows[0].run_id]);
        assert_eq!(ids(&after_progress.claim), [1, 2, 3, 4].map(|i: usize| rows[i].run_id));
    }

    #[test]
    fn the_last_pod_waits_for_another_before_it_gives_up_what_took_the_others_down() {
        let own = Incarnation::generate();
        let (poison, stranger) = (crashed(2), crashed(2));
        let taker = Taker { running: 0, capacity: None };
        let fleet = |pods| Some(FleetLoad { orphans: 2, takers: vec![taker; pods], me: 0 });
        let companions = Arc::new(BTreeSet::from_iter(poison.owner));
        let at = |last, rows: &[&Candidate], pods, seconds| {
            let memory = Memory { room: 9, companions: Arc::clone(&companions), last, ..Memory::default() };
            let rows = rows.iter().copied().cloned().collect();
            let seen = Seen { rows, fleet: fleet(pods), ..Seen::default() };
            super::plan(own, &RULES, &memory, &seen, Duration::from_secs(seconds))
        };
        let first = at(Sightings::default(), &[&poison], 1, 100);
        assert_eq!((first.claim.len(), first.give_up.len()), (0, 0));
        assert_eq!(first.again, Some(Duration::from_secs(30)));
        let later = at(first.sightings.clone(), &[&poison], 1, 130);
        assert_eq!((later.claim.len(), ids(&later.give_up)), (0, vec![poison.run_id]));
        // Another pod came: the usual rule applies, and the time begins again if that pod dies as well.
        let joined = at(first.sightings.clone(), &[&poison], 2, 130);
        assert_eq!((ids(&joined.claim), joined.sightings.last_pod), (vec![poison.run_id], None));
        // The owner died before this pod was there. So this pod is the replacement, not the last pod of a fleet.
        let single = at(first.sightings, &[&stranger], 1, 130);
        assert_eq!((ids(&single.claim), single.give_up.len()), (vec![stranger.run_id], 0));
    }

    #[test]
    fn a_suspect_of_ours_without_a_task_is_given_back_where_another_runs() {
        let own = Incarnation::generate();
        let suspect = |fence| Candidate { crashes: 2, unbegun: true, ..row(Some(own), fence) };
        let (one, two) = (suspect(7), suspect(8));
        let plan = plan(own, &Memory { room: 9, ..Memory::default() }, &[one.clone(), two.clone()]);
        assert_eq!((ids(&plan.adopt), ids(&plan.release)), (vec![one.run_id], vec![two.run_id]));
    }

    #[test]
    fn a_kind_with_a_limit_of_its_own_takes_no_more_and_stands_in_nobodys_way() {
        let of = |kind: &str| Candidate { kind: Arc::from(kind), ..row(None, 0) };
        let rows = [of("a"), of("a"), of("b"), of("a"), of("b")];
        let memory = Memory { room: 4, room_of: BTreeMap::from([(Arc::from("a"), 1)]), ..Memory::default() };
        let plan = plan(Incarnation::generate(), &memory, &rows);
        assert_eq!(ids(&plan.claim), [0, 2, 4].map(|i: usize| rows[i].run_id));
        assert!(plan.short_of_room);
    }

    #[test]
    fn orphans_are_shared_and_what_nobody_took_for_a_while_is_taken_by_whoever_has_room() {
        let own = Incarnation::generate();
        let rows: Vec<_> = (0..10).map(|_| row(None, 0)).collect();
        let taker = Taker { running: 0, capacity: Some(20) };
        let fleet = Some(FleetLoad { orphans: 10, takers: vec![taker; 2], me: 1 });
        let listed = [&rows[5..], &rows[..5]].concat();
        let seen = Seen { rows: listed, fleet, ..Seen::default() };
        let memory = Memory { room: 20, ..Memory::default() };
        let at = |memory: &Memory, seconds| super::plan(own, &RULES, memory, &seen, Duration::from_secs(seconds));
        let first = at(&memory, 100);
        assert_eq!(ids(&first.claim), ids(&rows[5..]), "its own half");
        assert_eq!(first.sightings.left.len(), 5);
        assert_eq!((first.again, first.short_of_room), (Some(RULES.share_wait), false));
        // A pass that runs earlier for any reason still leaves them to the others until those had time for a pass.
        let memory = Memory { last: first.sightings, ..memory };
        let sooner = at(&memory, 102);
        assert_eq!((sooner.claim.len(), sooner.again), (5, Some(Duration::from_secs(1))));
        assert!(sooner.sightings.left.values().all(|since| *since <= Duration::from_secs(102)));
        let memory = Memory { last: sooner.sightings, ..memory };
        let later = at(&memory, 103);
        assert_eq!(ids(&later.claim)[..5], ids(&rows[..5]), "those that nobody took come first");
        let full = at(&Memory { room: 0, ..Memory::default() }, 100);
        assert!(full.claim.is_empty() && full.short_of_room, "when a run of it ends it looks again");
    }

    #[test]
    fn a_pod_sees_all_orphans_only_while_it_waits_for_others_to_take_some_that_it_has_not_seen() {
        let own = Incarnation::generate();
        let rows: Vec<_> = (0..10).map(|_| row(None, 0)).collect();
        let plan = |running: usize, room: usize| {
            let (me, idle) = (Taker { running, capacity: Some(99) }, Taker { running: 0, capacity: Some(99) });
            let fleet = Some(FleetLoad { orphans: 40, takers: vec![me, idle], me: 0 });
            let seen = Seen { rows: rows.clone(), fleet, unlisted: 30, ..Seen::default() };
            (super::plan(own, &RULES, &Memory { room, ..Memory::default() }, &seen, Moment::ZERO), seen)
        };
        let (takes, seen) = plan(0, 99);
        assert_eq!((takes.claim.len(), must_see_all(&takes, &seen, false)), (10, false), "it takes all that it saw");
        let (leaves, seen) = plan(50, 49);
        assert!(leaves.claim.is_empty() && must_see_all(&leaves, &seen, false), "the idle pod takes all");
        let all = Seen { unlisted: 0, ..seen };
        assert!(!must_see_all(&leaves, &all, false), "it saw all of them, although it did not ask for that");
        assert!(must_see_all(&leaves, &all, true), "it goes on until nothing is left to wait for");
        let (full, seen) = plan(99, 0);
        assert!(!must_see_all(&full, &seen, false) && !must_see_all(&full, &seen, true), "it waits for room");
    }

    #[test]
    fn orphans_of_an_owner_that_is_gone_wait_for_claim_delay_and_others_do_not() {
        let (own, dead) = (Incarnation::generate(), Incarnation::generate());
        let rules = Rules { claim_delay: Duration::from_secs(2), ..RULES };
        let seen = Seen { rows: vec![row(Some(dead), 3), row(None, 0)], ..Seen::default() };
        let at = |memory: &Memory, seconds| super::plan(own, &rules, memory, &seen, Duration::from_secs(seconds));
        let memory = Memory { room: 9, ..Memory::default() };
        let first = at(&memory, 10);
        assert_eq!((ids(&first.claim), first.again), (ids(&seen.rows[1..]), Some(rules.claim_delay)));
        let memory = Memory { last: first.sightings, ..memory };
        assert_eq!(at(&memory, 11).again, Some(Duration::from_secs(1)));
        assert_eq!(ids(&at(&memory, 12).claim), ids(&seen.rows));
    }

    /// Issue: "read candidates so that the list costs less than the claim".
    #[test]
    fn a_pod_looks_back_when_the_others_have_claimed_for_as_long_as_it_did() {
        let millis = Duration::from_millis;
        for (took, most, after) in [(5, 250, 20), (90, 250, 90), (4000, 250, 250), (90, 10, 20)] {
            assert_eq!(looks_back_after(millis(took), millis(most)), millis(after), "{took} {most}");
        }
    }
}
