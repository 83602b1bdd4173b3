//! Which of its runs a pod asks to move, because it has more than its share of the fleet's runs.
//!
//! After ten pods were replaced one by one, the pods that came last have few runs, and the others have many. A pod with
//! more than its share asks some of its runs to yield. The less busy pods then claim them as they claim any orphan
//! ([`super::share`]).
//!
//! Authority: none. A move is a wish. The handler yields, or it does not. A yield and a claim are fenced writes.
//!
//! Why runs do not move back and forth:
//!
//! - *One level for each kind.* Take the pods with a handler for the kind. The level is the smallest number to which these
//!   pods can be filled, within their capacity, so that all of their runs have a place. Runs that may not move stay. Pods
//!   above the level yield runs until they reach it, and pods below it claim until they reach it. So no pod rises above
//!   the level because of a move.
//! - *A margin.* A pod above the level moves runs only if it has more runs than the least busy pod by a margin. So a
//!   run that ends or begins moves no other. The level alone is no bound: after the last of ten pods was replaced, that
//!   pod has nothing, and the others have only a ninth more than their share.
//! - *A rest.* A run moves only from a pod that has executed it for [`Rules::rest`], by the clock of that pod. The next
//!   owner counts from its own claim. So a run is never moved twice within that time, and no clocks are compared (L8).
//! - *A limit.* At most [`Rules::at_once`] runs of a pod are on their way. Runs that wait for an owner count as well:
//!   if nobody takes what was yielded, no more is yielded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::Moment;
use crate::id::{Fence, RunId};

/// A pod moves runs only if it has more runs than the least busy pod by more than this part of the level, and by more
/// than [`MARGIN_MIN`]. Less: runs move because others ended. More: the runs stay less evenly spread.
const MARGIN_PART: usize = 4;
/// With a margin of 0, two pods could not agree on who has the odd run.
const MARGIN_MIN: usize = 2;

/// How long, for each pod that can take runs, a pod waits between two reads of the fleet's load. All pods together make
/// about ten such reads a second at most. A read costs as much as there are running runs.
const EACH: Duration = Duration::from_millis(100);

/// How many times as long a pod waits after a read that showed nothing to move.
const IDLE: u32 = 3;

/// The settings that a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How many runs of this pod may be on their way at a time; 0: none is moved.
    pub at_once: usize,
    /// How long this pod must have executed a run before it moves it.
    pub rest: Duration,
}

/// A run of this pod whose starter said that it may move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mine {
    /// The run.
    pub run_id: RunId,
    /// The fence of the attempt.
    pub fence: Fence,
    /// The kind.
    pub kind: Arc<str>,
    /// When this attempt began, by this pod's clock.
    pub begun: Moment,
    /// Whether this attempt has saved a checkpoint.
    pub saved: bool,
    /// When it was asked to move, if it was.
    pub asked: Option<Moment>,
}

/// The runs of this pod that may move now, the one that began first at the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// The runs.
    pub runs: Vec<Mine>,
    /// How many of this pod's runs are on their way.
    pub leaving: usize,
}

impl Candidates {
    /// Chooses among the runs of this pod, before anything is read. If it has no candidates, nothing need be read.
    ///
    /// A run that was asked and stays counts as being on its way for [`Rules::rest`]. After that it does not keep
    /// others from moving any more. It is not asked again.
    #[must_use]
    pub fn of(rules: &Rules, running: usize, mine: Vec<Mine>, now: Moment) -> Self {
        let since = |at: Moment| now.saturating_sub(at);
        let leaving = mine.iter().filter(|run| run.asked.is_some_and(|at| since(at) < rules.rest)).count();
        if rules.at_once <= leaving || running.saturating_sub(leaving) <= MARGIN_MIN {
            return Self { runs: Vec::new(), leaving };
        }
        let may_move = |run: &Mine| run.saved && run.asked.is_none() && since(run.begun) >= rules.rest;
        let mut runs: Vec<_> = mine.into_iter().filter(may_move).collect();
        runs.sort_by_key(|run| (run.begun, run.run_id));
        Self { runs, leaving }
    }

    /// The kinds of the candidates.
    #[must_use]
    pub fn kinds(&self) -> Vec<String> {
        let kinds: BTreeSet<&str> = self.runs.iter().map(|run| &*run.kind).collect();
        kinds.into_iter().map(ToOwned::to_owned).collect()
    }
}

/// How busy a pod is that takes runs of some of the kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodLoad {
    /// Those of the kinds for which it has a handler.
    pub kinds: BTreeSet<Arc<str>>,
    /// How many running runs it owns.
    pub running: usize,
    /// How many of these may move.
    pub movable: usize,
    /// The most runs that it may run. `None`: unknown.
    pub capacity: Option<usize>,
}

impl PodLoad {
    /// How many runs the pod has if all runs that may move are poured up to `level`. It keeps those that may not.
    fn up_to(&self, level: usize) -> usize {
        let room = self.capacity.map_or(level, |capacity| capacity.min(level));
        room.max(self.running.saturating_sub(self.movable))
    }
}

/// The pods that take runs, and what waits for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// The pods, without those that drain or are cordoned.
    pub pods: Vec<PodLoad>,
    /// The index of this pod in `pods`. `None`: it is not one of them, and moves nothing.
    pub me: Option<usize>,
    /// How many runs of the kinds nobody owns.
    pub waiting: usize,
}

impl Fleet {
    /// The share of a pod among those with a handler for this kind: the lowest level at which they have all of their
    /// runs.
    fn level(&self, kind: &str) -> usize {
        let takers = || self.pods.iter().filter(|pod| pod.kinds.contains(kind));
        let total: usize = takers().map(|pod| pod.running).sum();
        let (mut low, mut high) = (0, takers().map(|pod| pod.running).max().unwrap_or(0));
        while low < high {
            let middle = low + (high - low) / 2;
            if takers().map(|pod| pod.up_to(middle)).sum::<usize>() >= total {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    /// Down to how many runs a pod with `running` runs may move those of this kind. `None`: it moves none of them.
    fn target(&self, kind: &str, running: usize) -> Option<usize> {
        let level = self.level(kind);
        let with_room = self.pods.iter().filter(|pod| pod.kinds.contains(kind) && pod.up_to(level) > pod.running);
        let least = with_room.map(|pod| pod.running).min()?;
        let margin = (level / MARGIN_PART).max(MARGIN_MIN);
        (running > level && running - least > margin).then_some(level)
    }
}

/// Chooses the runs that this pod asks to move now, out of the candidates.
#[must_use]
pub fn plan(rules: &Rules, candidates: &Candidates, fleet: &Fleet) -> Vec<Mine> {
    let Some(me) = fleet.me.and_then(|me| fleet.pods.get(me)) else { return Vec::new() };
    let places = rules.at_once.saturating_sub(candidates.leaving).saturating_sub(fleet.waiting);
    let running = me.running.saturating_sub(candidates.leaving);
    let mut targets: BTreeMap<&str, Option<usize>> = BTreeMap::new();
    let mut asked: Vec<Mine> = Vec::new();
    for run in &candidates.runs {
        if asked.len() >= places {
            break;
        }
        let target = *targets.entry(&run.kind).or_insert_with(|| fleet.target(&run.kind, running));
        if target.is_some_and(|target| running.saturating_sub(asked.len()) > target) {
            asked.push(run.clone());
        }
    }
    asked
}

/// How long a pod waits before it reads the fleet's load again: `sweep`, and longer in a large fleet. After a read that
/// showed nothing to move, it waits longer.
#[must_use]
pub fn pause(sweep: Duration, pods: usize, moved: bool) -> Duration {
    let pause = sweep.max(EACH.saturating_mul(u32::try_from(pods).unwrap_or(u32::MAX)));
    if moved { pause } else { pause.saturating_mul(IDLE) }
}

#[cfg(test)]
mod tests {
    use super::super::share::{FleetLoad, Taker};
    use super::*;

    const RULES: Rules = Rules { at_once: 4, rest: Duration::from_secs(600) };
    /// A time at which everything that began at 0 has rested.
    const NOW: Moment = Duration::from_secs(10_000);

    fn mine(kind: &str) -> Mine {
        let run_id = RunId::generate();
        Mine { run_id, fence: 7.into(), kind: Arc::from(kind), begun: Moment::ZERO, saved: true, asked: None }
    }

    /// A pod whose runs may all move.
    fn pod(running: usize, capacity: usize) -> PodLoad {
        PodLoad { kinds: BTreeSet::from([Arc::from("k")]), running, movable: running, capacity: Some(capacity) }
    }

    /// How many runs the first of these pods asks to move.
    fn asks(rules: &Rules, pods: &[PodLoad], waiting: usize) -> usize {
        let runs: Vec<_> = (0..pods[0].movable).map(|_| mine("k")).collect();
        let candidates = Candidates::of(rules, pods[0].running, runs, NOW);
        plan(rules, &candidates, &Fleet { pods: pods.to_vec(), me: Some(0), waiting }).len()
    }

    #[test]
    fn a_pod_above_its_share_moves_down_to_it_if_another_has_much_less() {
        let all = Rules { at_once: 100, ..RULES };
        let cases: &[(&[(usize, usize)], usize)] = &[
            // An empty pod beside a busy one: each gets half.
            (&[(10, 100), (0, 100)], 5),
            (&[(11, 100), (0, 100)], 5),
            // Within the margin nothing moves.
            (&[(2, 100), (0, 100)], 0),
            (&[(3, 100), (1, 100)], 0),
            (&[(3, 100), (0, 100)], 1),
            (&[(4, 100), (0, 100)], 2),
            (&[(11, 100), (9, 100)], 0),
            (&[(90, 100), (72, 100)], 0),
            (&[(100, 100), (60, 100)], 20),
            // Who is below its share moves nothing, and neither does who is alone.
            (&[(5, 100), (20, 100)], 0),
            (&[(50, 100)], 0),
            // No other pod has room, or only some.
            (&[(50, 100), (10, 10)], 0),
            (&[(50, 100), (10, 20)], 10),
            // Ten pods after a rolling deploy. The last one has none.
            (&[(9, 100), (8, 100), (7, 100), (6, 100), (5, 100), (4, 100), (3, 100), (2, 100), (1, 100), (0, 100)], 4),
            // The others are hardly above their share, and the last one has nothing.
            (&[(5, 100), (5, 100), (5, 100), (5, 100), (0, 100)], 1),
            (&[(4, 100), (5, 100), (5, 100), (6, 100), (0, 100)], 0),
            (
                &[
                    (111, 200),
                    (111, 200),
                    (111, 200),
                    (111, 200),
                    (111, 200),
                    (111, 200),
                    (111, 200),
                    (111, 200),
                    (0, 200),
                ],
                12,
            ),
        ];
        for (pods, expected) in cases {
            let pods: Vec<_> = pods.iter().map(|&(running, capacity)| pod(running, capacity)).collect();
            assert_eq!(asks(&all, &pods, 0), *expected, "{pods:?}");
        }
    }

    #[test]
    fn runs_that_may_not_move_stay_and_raise_the_share_of_nobody() {
        let all = Rules { at_once: 100, ..RULES };
        let fixed = |running| PodLoad { movable: 0, ..pod(running, 100) };
        assert_eq!(asks(&all, &[pod(10, 100), fixed(30), pod(0, 100)], 0), 5, "half of ten, whatever the third has");
        assert_eq!(asks(&all, &[fixed(30), pod(0, 100)], 0), 0, "none of them may move");
        let some = PodLoad { movable: 3, ..pod(30, 100) };
        assert_eq!(asks(&all, &[some, pod(0, 100)], 0), 3);
    }

    #[test]
    fn only_pods_with_a_handler_for_the_kind_count() {
        let other = PodLoad { kinds: BTreeSet::from([Arc::from("other")]), ..pod(0, 100) };
        assert_eq!(asks(&RULES, &[pod(10, 100), other.clone()], 0), 0);
        assert_eq!(asks(&RULES, &[pod(10, 100), other, pod(0, 100)], 0), 4);
        // Of two kinds, only that moves which another pod can take.
        let both = PodLoad { kinds: ["k", "rare"].map(Arc::from).into(), ..pod(10, 100) };
        let runs: Vec<_> = [mine("rare"), mine("k"), mine("rare"), mine("k")].into_iter().collect();
        let candidates = Candidates::of(&RULES, 10, runs, NOW);
        assert_eq!(candidates.kinds(), ["k", "rare"]);
        let fleet = Fleet { pods: vec![both, pod(0, 100)], me: Some(0), waiting: 0 };
        let asked = plan(&RULES, &candidates, &fleet);
        assert!(asked.len() == 2 && asked.iter().all(|run| &*run.kind == "k"), "{asked:?}");
        assert_eq!(plan(&RULES, &candidates, &Fleet { me: None, ..fleet }), [], "a cordoned pod keeps its runs");
    }

    #[test]
    fn at_most_so_many_are_on_their_way_and_none_while_as_many_wait_for_an_owner() {
        let pods = [pod(50, 100), pod(0, 100)];
        for (at_once, waiting, expected) in [(4, 0, 4), (1, 0, 1), (0, 0, 0), (4, 1, 3), (4, 4, 0), (4, 9, 0)] {
            let rules = Rules { at_once, ..RULES };
            assert_eq!(asks(&rules, &pods, waiting), expected, "{at_once} at once, {waiting} wait");
        }
        let on_its_way = Mine { asked: Some(NOW - Duration::from_secs(1)), ..mine("k") };
        let runs: Vec<_> = (0..47).map(|_| mine("k")).chain(std::iter::repeat_n(on_its_way, 3)).collect();
        let candidates = Candidates::of(&RULES, 50, runs, NOW);
        let fleet = Fleet { pods: pods.to_vec(), me: Some(0), waiting: 0 };
        assert_eq!((candidates.leaving, plan(&RULES, &candidates, &fleet).len()), (3, 1));
    }

    #[test]
    fn a_run_moves_only_after_a_checkpoint_and_a_rest_and_is_asked_once() {
        let (fit, unsaved) = (mine("k"), Mine { saved: false, ..mine("k") });
        let fresh = Mine { begun: NOW - RULES.rest + Duration::from_nanos(1), ..mine("k") };
        let older = Mine { begun: Duration::from_secs(1), ..mine("k") };
        let stays = Mine { asked: Some(NOW - RULES.rest), ..mine("k") };
        let runs = vec![older.clone(), unsaved, fresh, fit.clone(), stays];
        let candidates = Candidates::of(&RULES, 9, runs.clone(), NOW);
        assert_eq!(
            (candidates.runs, candidates.leaving),
            (vec![fit, older], 0),
            "the one that began first comes first"
        );
        assert_eq!(Candidates::of(&RULES, 2, runs, NOW).runs, [], "a pod with two runs is never above its share");
    }

    #[test]
    fn the_pause_grows_with_the_fleet_and_where_nothing_moves() {
        let sweep = Duration::from_secs(3);
        assert_eq!(pause(sweep, 10, true), sweep);
        assert_eq!(pause(sweep, 10, false), sweep * 3);
        assert_eq!(pause(sweep, 200, true), Duration::from_secs(20));
        assert!(pause(Duration::MAX, usize::MAX, false) == Duration::MAX);
    }

    /// Random fleets, in which all pods look at once and others then claim what was yielded. No pod moves more than
    /// `at_once` at a time. Nobody who took a run is above its share because of it. The moves come to an end, and no
    /// run moves twice. In the end a pod that has more than its share and than another has no
    /// run left that may move.
    #[test]
    fn runs_spread_and_never_move_to_and_fro() {
        let mut random = fastrand::Rng::with_seed(29);
        for round in 0..500 {
            let rules = Rules { at_once: random.usize(1..8), ..RULES };
            let mut pods: Vec<PodLoad> = (0..random.usize(1..12))
                .map(|_| {
                    let running = random.usize(0..60);
                    let movable = if random.bool() { running } else { random.usize(0..=running) };
                    PodLoad { movable, ..pod(running, running + random.usize(0..60)) }
                })
                .collect();
            // The runs that were not moved yet. A run that was moved rests for longer than this test takes.
            let mut unmoved: Vec<usize> = pods.iter().map(|pod| pod.movable).collect();
            let began = format!("round {round}: {rules:?}, {pods:?}");
            let first = Fleet { pods: pods.clone(), me: Some(0), waiting: 0 };
            let surplus: usize = pods.iter().map(|pod| pod.running.saturating_sub(first.level("k"))).sum();
            let mut moves = 0;
            loop {
                let fleet = |me| Fleet { pods: pods.clone(), me: Some(me), waiting: 0 };
                let level = fleet(0).level("k");
                let yielded: Vec<usize> = (0..pods.len())
                    .map(|me| {
                        let runs: Vec<_> = (0..unmoved[me]).map(|_| mine("k")).collect();
                        let asked = plan(&rules, &Candidates::of(&rules, pods[me].running, runs, NOW), &fleet(me));
                        assert!(asked.len() <= rules.at_once.min(unmoved[me]), "{began}");
                        asked.len()
                    })
                    .collect();
                let mut orphans: usize = yielded.iter().sum();
                if orphans == 0 {
                    break;
                }
                moves += orphans;
                for (me, count) in yielded.iter().enumerate() {
                    (pods[me].running, pods[me].movable) = (pods[me].running - count, pods[me].movable - count);
                    unmoved[me] -= count;
                }
                // One pod after another claims its share. Who yielded a run does not claim it again.
                for me in 0..pods.len() {
                    let takers =
                        pods.iter().map(|pod| Taker { running: pod.running, capacity: pod.capacity }).collect();
                    let share = FleetLoad { orphans, takers, me }.share();
                    if share == 0 {
                        continue;
                    }
                    assert_eq!(yielded[me], 0, "who yielded takes nothing: {began}");
                    (pods[me].running, pods[me].movable) = (pods[me].running + share, pods[me].movable + share);
                    orphans -= share;
                    assert!(pods[me].running <= level, "{} above {level}: {began}", pods[me].running);
                }
                assert_eq!(orphans, 0, "there is room for all: {began}");
                assert_eq!(fleet_level(&pods), level, "the level stays: {began}");
                assert!(moves <= surplus, "{began}");
            }
            let level = fleet_level(&pods);
            for (me, pod) in pods.iter().enumerate() {
                let target = Fleet { pods: pods.clone(), me: None, waiting: 0 }.target("k", pod.running);
                assert!(target.is_none() || unmoved[me] == 0, "{pod:?} above {level}: {began}");
            }
        }
    }

    fn fleet_level(pods: &[PodLoad]) -> usize {
        Fleet { pods: pods.to_vec(), me: None, waiting: 0 }.level("k")
    }
}
