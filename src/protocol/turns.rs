//! Which pod does a task that one pod at a time should do, about once per beat interval in the whole fleet.
//!
//! * **Authority.** None: a turn too many or too few only costs time. Each pod decides by what its last beat showed:
//!   its own event index, and which peers hold both of their locks. Dead pods have no turn.
//! * **How.** All pods take the values of one index. So in each round of as many beats as there are pods, each pod
//!   beats about once. The number of the round says whose turn it is: the pods take turns by incarnation.
//! * **Bound.** A round takes about a beat interval, so turns are less than two intervals apart. Pods that beat more
//!   often or not at all disturb the rounds. So a pod also takes a turn if it has had none for two full cycles of
//!   beats.
//! * **Failures.** A pod that cannot do the task keeps no other pod from its turn.

use crate::id::Incarnation;

/// The knowledge of a pod at its beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beaten {
    /// This pod.
    pub own: Incarnation,
    /// Its event index.
    pub index: i64,
    /// How often it has beaten since its last turn, this beat included.
    pub since_turn: usize,
}

/// Whether it is this pod's turn. `peers`: the peers that hold both of their locks.
#[must_use]
pub fn is_turn(beaten: &Beaten, peers: impl Iterator<Item = Incarnation>) -> bool {
    let (mut pods, mut rank) = (1, 0);
    for peer in peers {
        pods += 1;
        rank += i64::from(peer < beaten.own);
    }
    let round = beaten.index.div_euclid(pods);
    round.rem_euclid(pods) == rank || i64::try_from(beaten.since_turn).is_ok_and(|beats| beats >= pods * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(n: usize) -> Incarnation {
        uuid::Uuid::from_u128(n as u128 + 1).into()
    }

    /// Lets pods beat, one after another, from this index on. `moves`: whether the pod takes a value of the index.
    /// Returns the beats, counted over all pods, at which a pod had its turn, and the pod.
    fn turns(pods: usize, from: i64, beats: usize, moves: impl Fn(usize) -> bool) -> Vec<(usize, usize)> {
        let (mut index, mut own) = (from, vec![from; pods]);
        let (mut since, mut turns) = (vec![0; pods], Vec::new());
        for beat in 0..beats {
            let n = beat % pods;
            if moves(n) {
                index += 1;
                own[n] = index;
            }
            since[n] += 1;
            let beaten = Beaten { own: pod(n), index: own[n], since_turn: since[n] };
            if is_turn(&beaten, (0..pods).filter(|peer| *peer != n).map(pod)) {
                since[n] = 0;
                turns.push((beat, n));
            }
        }
        turns
    }

    fn longest_gap(turns: &[(usize, usize)]) -> usize {
        turns.windows(2).map(|two| two[1].0 - two[0].0).max().unwrap_or(usize::MAX)
    }

    #[test]
    fn in_each_beat_interval_it_is_about_once_the_turn_of_somebody_and_of_each_in_time() {
        for pods in 1..=9 {
            for from in 0..20 {
                let turns = turns(pods, from, pods * 200, |_| true);
                assert!(turns.len().abs_diff(200) <= 2, "{pods} pods: {} turns in 200 intervals", turns.len());
                assert!(longest_gap(&turns) < pods * 2, "{pods} pods, from {from}: {turns:?}");
                for n in 0..pods {
                    assert!(turns.iter().any(|(_, of)| *of == n), "pod {n} of {pods} never has a turn");
                }
            }
        }
    }

    #[test]
    fn pods_that_hold_their_locks_and_do_not_beat_delay_the_turns_by_a_bound() {
        for pods in 2..=9_usize {
            for stuck in 0..pods {
                let all = turns(pods, 7, pods * 200, |n| n != stuck);
                // Only the turns of the other pods count: the stuck one may do nothing.
                let others: Vec<_> = all.into_iter().filter(|(_, n)| *n != stuck).collect();
                assert!(longest_gap(&others) <= pods * pods * 2, "{pods} pods, {stuck} is stuck: {others:?}");
            }
        }
    }
}
