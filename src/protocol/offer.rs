//! Which pods are told of runs that nobody owns, and how often.
//!
//! Authority: none. A notice only makes a recovery pass come sooner (L6, L11). Each pass decides by itself what it
//! takes.
//!
//! For each kind, one pod is told first: this pod itself, or one that a statement chose. That pod's recovery pass takes
//! its share of the orphans that it can take, and tells other pods of the rest ([`after_a_pass`]). So a single run
//! wakes one pod, and a burst wakes as many as it needs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Moment;
use super::recover::{Plan, Seen};
use super::share::FleetLoad;

/// The least time between two statements of a pod that tell others. Longer: a run that is submitted soon after another
/// waits longer for its pod. Shorter: more notices, each of which delays the commits of all sessions for a moment.
pub const GAP: Duration = Duration::from_millis(250);

/// The most kinds for which single pods are chosen. For more, every pod is told.
pub const KINDS_MOST: usize = 16;

/// The most pods that are told one by one. If more have a share of what was left, every pod is told: it is one notice.
pub const PODS_MOST: usize = 4;

/// Whom to tell of runs without an owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Untold {
    /// For each of these kinds, one pod that has a handler and room.
    pub kinds: BTreeSet<String>,
    /// These pods.
    pub pods: BTreeSet<String>,
    /// Every pod.
    pub everybody: bool,
    /// Every pod, if a run of one of these kinds has no owner yet: a pod was chosen before, and may not have heard.
    pub still: BTreeSet<String>,
    /// This pod itself.
    pub own: bool,
}

impl Untold {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether other pods are to be told.
    #[must_use]
    pub fn is_for_others(&self) -> bool {
        self.everybody || !self.kinds.is_empty() || !self.pods.is_empty() || !self.still.is_empty()
    }

    /// Adds what else is to be told.
    pub fn add(&mut self, more: Self) {
        self.pods.extend(more.pods);
        self.own |= more.own;
        self.everybody |= more.everybody;
        for (kinds, more) in [(&mut self.kinds, more.kinds), (&mut self.still, more.still)] {
            kinds.extend(more);
            if kinds.len() > KINDS_MOST {
                kinds.clear();
                self.everybody = true;
            }
        }
    }
}

/// What a pod has to tell, and when. Moments are those of its own clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agenda {
    untold: Untold,
    /// What is told a [`GAP`] after the first of it came, and again a [`GAP`] after the last of it came.
    later: Untold,
    /// Since when `later` waits, and when the last of it came.
    waits: Option<(Moment, Moment)>,
    /// When the herald told other pods for the last time, and when a caller's transaction did.
    told: Option<Moment>,
    told_in_txn: Option<Moment>,
}

impl Agenda {
    /// Adds what is told as soon as the gap allows.
    pub fn add(&mut self, more: Untold) {
        self.untold.add(more);
    }

    /// Adds what is too early to tell now.
    pub fn add_for_later(&mut self, more: Untold, now: Moment) {
        self.later.add(more);
        self.waits = Some((self.waits.map_or(now, |(since, _)| since), now));
    }

    /// Whether a caller's transaction may notify now. If so, it counts as told.
    pub fn may_tell(&mut self, now: Moment) -> bool {
        let may = next_at(self.told_in_txn, Moment::ZERO) <= now;
        if may {
            self.told_in_txn = Some(now);
        }
        may
    }

    /// When the next statement is due. `None`: there is nothing to tell.
    #[must_use]
    pub fn due(&self) -> Option<Moment> {
        let now = (!self.untold.is_empty()).then(|| next_at(self.told, Moment::ZERO));
        let later = self.waits.map(|(since, _)| next_at(self.told, since + GAP));
        now.into_iter().chain(later).min()
    }

    /// Takes what is to be told now.
    #[must_use]
    pub fn take(&mut self, now: Moment) -> Untold {
        let mut untold = std::mem::take(&mut self.untold);
        if let Some((_, last)) = self.waits.filter(|(since, _)| *since + GAP <= now) {
            if last + GAP <= now {
                untold.add(std::mem::take(&mut self.later));
                self.waits = None;
            } else {
                untold.add(self.later.clone());
                self.waits = Some((last, last));
            }
        }
        if untold.is_for_others() {
            self.told = Some(now);
        }
        untold
    }

    /// Takes everything: nothing is told later.
    #[must_use]
    pub fn take_all(&mut self) -> Untold {
        let mut untold = std::mem::take(&mut self.untold);
        untold.add(std::mem::take(&mut self.later));
        self.waits = None;
        untold
    }
}

/// When others may be told next.
fn next_at(told: Option<Moment>, not_before: Moment) -> Moment {
    told.map_or(not_before, |told| (told + GAP).max(not_before))
}

/// Whom a pass tells of the orphans that it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tell {
    /// Nobody: it left none, or no other pod has room.
    Nobody,
    /// The pods with these places among the takers.
    Pods(Vec<usize>),
    /// For each of these kinds, one pod.
    Kinds(BTreeSet<Arc<str>>),
    /// Every pod.
    Everybody,
}

/// Whom to tell after a pass that this pod was chosen for. `hidden`: there may be orphans that this pass left out of
/// its load, because this pod cannot take them now.
///
/// The load of the fleet does not say which pod has a handler for which kind. So if orphans of several kinds are left,
/// a pod is chosen again for each kind.
#[must_use]
pub fn after_a_pass(plan: &Plan, seen: &Seen, hidden: bool) -> Tell {
    let planned = plan.claim.len() + plan.withheld;
    let Some(fleet) = &seen.fleet else { return if hidden { Tell::Everybody } else { Tell::Nobody } };
    let left = fleet.orphans.saturating_sub(planned);
    if left == 0 {
        return if hidden { Tell::Everybody } else { Tell::Nobody };
    }
    let claimed: BTreeSet<_> = plan.claim.iter().map(|row| row.run_id).collect();
    let listed = seen.rows.iter().filter(|row| row.owner.is_none() && !claimed.contains(&row.run_id));
    let mut kinds: BTreeSet<_> = listed.map(|row| Arc::clone(&row.kind)).collect();
    if seen.unlisted > 0 {
        kinds.extend(seen.ownerless.iter().cloned());
    }
    if kinds.len() > 1 { Tell::Kinds(kinds) } else { others(fleet, left) }
}

/// The pods that take `left` orphans as their share: those with the largest shares first, and of equal ones the next
/// after this pod.
fn others(fleet: &FleetLoad, left: usize) -> Tell {
    let count = fleet.takers.len();
    let mut shares: Vec<(usize, usize)> = (1..count)
        .map(|step| (fleet.me + step) % count)
        .map(|place| (place, FleetLoad { me: place, ..fleet.clone() }.share()))
        .filter(|(_, share)| *share > 0)
        .collect();
    shares.sort_by_key(|(_, share)| std::cmp::Reverse(*share));
    let mut covered = 0;
    let chosen: Vec<usize> = shares
        .into_iter()
        .take_while(|(_, share)| {
            let needed = covered < left;
            covered += share;
            needed
        })
        .map(|(place, _)| place)
        .collect();
    match chosen.len() {
        0 => Tell::Nobody,
        1..=PODS_MOST => Tell::Pods(chosen),
        _ => Tell::Everybody,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::recover::Candidate;
    use super::super::share::Taker;
    use super::*;
    use crate::id::RunId;

    fn fleet(orphans: usize, me: usize, pods: &[(usize, usize)]) -> FleetLoad {
        let takers = pods.iter().map(|&(running, c)| Taker { running, capacity: Some(c) }).collect();
        FleetLoad { orphans, takers, me }
    }

    fn seen(fleet: FleetLoad) -> Seen {
        Seen { fleet: Some(fleet), ..Seen::default() }
    }

    fn candidate() -> Candidate {
        Candidate {
            run_id: RunId::generate(),
            kind: Arc::from("k"),
            owner: None,
            fence: 0.into(),
            unbegun: true,
            crashes: 0,
            crashed: false,
        }
    }

    fn claims(count: usize) -> Plan {
        Plan { claim: (0..count).map(|_| candidate()).collect(), ..Plan::default() }
    }

    #[test]
    fn a_pass_tells_the_pods_whose_share_it_left() {
        type Case<'a> = (usize, usize, usize, &'a [(usize, usize)], Tell);
        let cases: &[Case<'_>] = &[
            // It took all of them.
            (1, 1, 0, &[(0, 9), (0, 9)], Tell::Nobody),
            // It is the busier one.
            (1, 0, 0, &[(5, 9), (0, 9)], Tell::Pods(vec![1])),
            (1, 0, 2, &[(0, 9), (1, 9), (5, 9)], Tell::Pods(vec![0])),
            // Of equal pods, the next after it.
            (1, 0, 1, &[(0, 9), (5, 9), (0, 9)], Tell::Pods(vec![2])),
            // As many as it needs, the largest shares first.
            (6, 2, 0, &[(1, 9), (2, 9), (0, 9)], Tell::Pods(vec![2, 1])),
            // Those that are full are not told.
            (3, 0, 0, &[(2, 2), (2, 2), (0, 9)], Tell::Pods(vec![2])),
            (3, 0, 0, &[(2, 2), (2, 2)], Tell::Nobody),
            // More than are told one by one.
            (9, 1, 0, &[(0, 9); 9], Tell::Everybody),
            // It is the only one.
            (3, 0, 0, &[(0, 1)], Tell::Nobody),
        ];
        for (orphans, claimed, me, pods, expected) in cases {
            let fleet = fleet(*orphans, *me, pods);
            assert_eq!(after_a_pass(&claims(*claimed), &seen(fleet), false), *expected, "{orphans} over {pods:?}");
        }
    }

    #[test]
    fn a_pass_that_could_not_see_all_orphans_tells_every_pod() {
        let two = seen(fleet(1, 0, &[(0, 9), (0, 9)]));
        assert_eq!(after_a_pass(&claims(1), &two, true), Tell::Everybody);
        assert_eq!(after_a_pass(&claims(0), &Seen::default(), true), Tell::Everybody);
        assert_eq!(after_a_pass(&claims(0), &Seen::default(), false), Tell::Nobody);
    }

    /// While `claim_delay` runs, every pod would tell others of the same orphans again and again.
    #[test]
    fn nobody_is_told_of_orphans_that_no_pod_may_take_yet() {
        let plan = Plan { withheld: 3, ..claims(0) };
        let four = |orphans| seen(fleet(orphans, 0, &[(5, 9), (0, 9), (0, 9), (0, 9)]));
        assert_eq!(after_a_pass(&plan, &four(3), false), Tell::Nobody);
        assert_eq!(after_a_pass(&plan, &four(4), false), Tell::Pods(vec![1]));
    }

    #[test]
    fn of_several_kinds_that_are_left_a_pod_is_chosen_for_each() {
        let of = |kind: &str| Candidate { kind: Arc::from(kind), ..candidate() };
        let mut load = seen(fleet(3, 0, &[(0, 9), (0, 9), (0, 9)]));
        load.rows = vec![of("x"), of("y"), of("z")];
        let plan = Plan { claim: vec![load.rows[0].clone()], ..Plan::default() };
        assert_eq!(after_a_pass(&plan, &load, false), Tell::Kinds(["y", "z"].map(Arc::from).into()));
    }

    #[test]
    fn a_kind_of_an_orphan_that_was_not_listed_counts_as_left() {
        let of = |kind: &str| Candidate { kind: Arc::from(kind), ..candidate() };
        let load = Seen {
            rows: vec![of("x")],
            unlisted: 2,
            ownerless: ["x", "y"].map(Arc::from).into(),
            ..seen(fleet(3, 0, &[(0, 9), (0, 9), (0, 9)]))
        };
        let plan = Plan { claim: vec![load.rows[0].clone()], ..Plan::default() };
        assert_eq!(after_a_pass(&plan, &load, false), Tell::Kinds(["x", "y"].map(Arc::from).into()));
    }

    /// In any fleet, this pod and the pods that it tells have a share of every orphan for which there is room.
    #[test]
    fn no_orphan_is_left_for_which_a_pod_that_knows_has_room() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..2000 {
            let pods: Vec<_> = (0..random.usize(1..9)).map(|_| (random.usize(0..20), random.usize(1..30))).collect();
            let fleet = fleet(random.usize(0..30), random.usize(0..pods.len()), &pods);
            let share = |me| FleetLoad { me, ..fleet.clone() }.share();
            let own = share(fleet.me);
            let told: usize = match after_a_pass(&claims(own), &seen(fleet.clone()), false) {
                Tell::Nobody => 0,
                Tell::Pods(places) => {
                    assert!(places.len() <= PODS_MOST && !places.contains(&fleet.me), "{fleet:?}: {places:?}");
                    places.iter().map(|place| share(*place)).sum()
                }
                Tell::Everybody | Tell::Kinds(_) => continue,
            };
            let room: usize = pods.iter().map(|(running, capacity)| capacity.saturating_sub(*running)).sum();
            assert!(own + told >= fleet.orphans.min(room), "{fleet:?}: {own} and {told}");
        }
    }

    fn of_kind(kind: &str) -> Untold {
        Untold { kinds: [kind.to_owned()].into(), ..Untold::default() }
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_is_told_at_once_and_what_comes_within_the_gap_together() {
        let mut agenda = Agenda::default();
        assert_eq!(agenda.due(), None);
        agenda.add(of_kind("a"));
        assert_eq!(agenda.due(), Some(Moment::ZERO));
        assert_eq!(agenda.take(1000 * MS), of_kind("a"));
        agenda.add(of_kind("b"));
        agenda.add(of_kind("c"));
        assert_eq!(agenda.due(), Some(1000 * MS + GAP));
        assert_eq!(agenda.take(1000 * MS + GAP).kinds, ["b", "c"].map(ToOwned::to_owned).into());
        assert_eq!(agenda.due(), None);
        // What concerns only this pod uses up no gap.
        agenda.add(Untold { own: true, ..Untold::default() });
        assert!(agenda.take(2000 * MS).own);
        agenda.add(of_kind("d"));
        assert!(agenda.due() <= Some(2000 * MS));
    }

    /// A transaction that is told of may commit later than another that came before it.
    #[test]
    fn what_is_too_early_is_told_after_the_gap_and_once_more_after_the_last_of_it() {
        let mut agenda = Agenda::default();
        agenda.add_for_later(of_kind("a"), 1000 * MS);
        agenda.add_for_later(of_kind("b"), 1200 * MS);
        assert_eq!(agenda.due(), Some(1000 * MS + GAP));
        let both = ["a", "b"].map(ToOwned::to_owned).into();
        assert_eq!(agenda.take(1250 * MS).kinds, both);
        assert_eq!(agenda.due(), Some((1200 * MS + GAP).max(1250 * MS + GAP)));
        assert_eq!(agenda.take(1500 * MS).kinds, both);
        assert_eq!(agenda.due(), None);
        agenda.add_for_later(of_kind("c"), 2000 * MS);
        assert_eq!((agenda.take_all(), agenda.due()), (of_kind("c"), None));
    }

    #[test]
    fn transactions_of_callers_tell_at_most_once_in_the_gap_and_do_not_hold_up_the_herald() {
        let mut agenda = Agenda::default();
        assert!(agenda.may_tell(1000 * MS));
        assert!(!agenda.may_tell(1000 * MS + GAP - MS));
        agenda.add(of_kind("a"));
        assert_eq!(agenda.due(), Some(Moment::ZERO));
        assert!(agenda.may_tell(1000 * MS + GAP));
    }

    #[test]
    fn of_too_many_kinds_every_pod_is_told() {
        let mut agenda = Agenda::default();
        (0..=KINDS_MOST).for_each(|n| agenda.add(of_kind(&n.to_string())));
        assert_eq!(agenda.take(MS), Untold { everybody: true, ..Untold::default() });
    }
}
