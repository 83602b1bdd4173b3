//! How many of the orphans a pod takes, so that all survivors become equally busy.
//!
//! Authority: none. A share is a wish of one pod, computed from what one statement showed. Each claim is a
//! compare-and-swap of its own. Pods that see the same rows take no orphan twice and leave none.
//!
//! The orphans fill the pods that can take them like water: the least busy pods first, up to one level. If all pods
//! have equal room and none is full, a pod gets `ceil((orphans + running) / pods) − own`.

/// One pod that has a handler for some of the orphans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taker {
    /// How many running runs it owns.
    pub running: usize,
    /// The most runs that it may run. `None`: unknown.
    pub capacity: Option<usize>,
}

impl Taker {
    fn room(self) -> usize {
        self.capacity.map_or(usize::MAX, |capacity| capacity.saturating_sub(self.running))
    }

    /// How many orphans the pod gets if all pods are filled up to `level`.
    fn up_to(self, level: usize) -> usize {
        level.saturating_sub(self.running).min(self.room())
    }
}

/// The orphans, and the pods that can take them. All pods use the same order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetLoad {
    /// How many orphans there are.
    pub orphans: usize,
    /// The pods that can take orphans.
    pub takers: Vec<Taker>,
    /// The index of this pod in `takers`.
    pub me: usize,
}

impl FleetLoad {
    /// How many of the orphans this pod takes. If this pod is not in `takers`: all of them.
    #[must_use]
    pub fn share(&self) -> usize {
        let Some(me) = self.takers.get(self.me) else { return self.orphans };
        let poured =
            |level: usize| self.takers.iter().fold(0_usize, |sum, taker| sum.saturating_add(taker.up_to(level)));
        // The lowest level at which the pods take all orphans, or else the level at which every pod is full.
        let (mut low, mut high) = (0, self.takers.iter().map(|t| t.running).max().unwrap_or(0) + self.orphans);
        while low < high {
            let middle = low + (high - low) / 2;
            if poured(middle) >= self.orphans {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        me.up_to(low).min(self.orphans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share of each pod. A pod is given as (running, capacity).
    fn shares(orphans: usize, pods: &[(usize, usize)]) -> Vec<usize> {
        let takers: Vec<_> = pods.iter().map(|&(running, c)| Taker { running, capacity: Some(c) }).collect();
        (0..pods.len()).map(|me| FleetLoad { orphans, takers: takers.clone(), me }.share()).collect()
    }

    #[test]
    fn orphans_are_poured_over_the_least_busy_pods_first() {
        type Case<'a> = (usize, &'a [(usize, usize)], &'a [usize]);
        let cases: &[Case<'_>] = &[
            (1000, &[(0, 1000); 4], &[250; 4]),
            (1000, &[(0, 300); 4], &[250; 4]),
            (10, &[(0, 100); 3], &[4; 3]),
            (1, &[(0, 100); 3], &[1; 3]),
            (0, &[(5, 100), (0, 100)], &[0, 0]),
            (100, &[(0, 100)], &[100]),
            // ceil((claimable + running) / live) − own.
            (10, &[(6, 100), (2, 100)], &[3, 7]),
            (10, &[(100, 200), (0, 200), (0, 200)], &[0, 5, 5]),
            // A full pod takes nothing, and the free pod takes everything.
            (50, &[(10, 10), (0, 100)], &[0, 50]),
            (50, &[(10, 10), (0, 30), (0, 100)], &[0, 25, 25]),
            (50, &[(0, 5), (0, 10), (0, 100)], &[5, 10, 35]),
            // More orphans than there is room for.
            (50, &[(8, 10), (0, 20)], &[2, 20]),
            (50, &[(12, 10), (10, 10)], &[0, 0]),
        ];
        for (orphans, pods, expected) in cases {
            assert_eq!(shares(*orphans, pods), *expected, "{orphans} orphans over {pods:?}");
        }
    }

    /// In any fleet, the shares leave no orphan for which there is room, and exceed the orphans only by rounding.
    #[test]
    fn the_shares_together_are_all_that_there_is_room_for() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2000 {
            let pods: Vec<_> = (0..random.usize(1..9)).map(|_| (random.usize(0..40), random.usize(1..60))).collect();
            let orphans = random.usize(0..200);
            let shares = shares(orphans, &pods);
            let room: usize = pods.iter().map(|(running, capacity)| capacity.saturating_sub(*running)).sum();
            let sum: usize = shares.iter().sum();
            assert!(
                sum >= orphans.min(room) && sum < orphans.min(room) + pods.len(),
                "{orphans} over {pods:?}: {shares:?}"
            );
            for ((running, capacity), share) in pods.iter().zip(&shares) {
                assert!(*share <= capacity.saturating_sub(*running), "{orphans} over {pods:?}: {shares:?}");
            }
        }
    }

    #[test]
    fn a_pod_of_unknown_room_has_enough_and_one_that_is_not_listed_takes_what_it_can() {
        let takers = vec![Taker { running: 0, capacity: None }, Taker { running: 0, capacity: Some(2) }];
        let share = |me| FleetLoad { orphans: 10, takers: takers.clone(), me }.share();
        assert_eq!([share(0), share(1), share(2)], [8, 2, 10]);
        assert_eq!(FleetLoad { orphans: 3, ..FleetLoad::default() }.share(), 3);
    }
}
