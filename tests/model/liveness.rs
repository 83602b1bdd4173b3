//! Whether every run can always still be finished, from the whole graph.
//!
//! stateright's `eventually` sees no cycles, and a pass that runs for ever without getting anywhere is one. So this
//! asks of each reachable state whether an end can be reached from it by the steps of processes alone. A scheduler that
//! is fair takes that way some day.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use stateright::Model;

use crate::actions::{self, Action};
use crate::model::Podlock;
use crate::properties::is_over;
use crate::state::State;

/// What the search found.
pub(crate) struct Graph {
    pub(crate) states: usize,
    /// How a state is reached from which no end can be reached.
    pub(crate) stuck: Option<Vec<Action>>,
}

pub(crate) fn search(model: &Podlock) -> Graph {
    let mut known: HashMap<u64, usize> = HashMap::new();
    let mut parents: Vec<Option<(usize, Action)>> = Vec::new();
    let mut before: Vec<Vec<usize>> = Vec::new();
    let mut ends = VecDeque::new();
    let mut queue = VecDeque::new();
    for s in model.init_states() {
        known.insert(fingerprint(&s), parents.len());
        parents.push(None);
        before.push(Vec::new());
        queue.push_back(s);
    }
    let mut at = 0;
    while let Some(s) = queue.pop_front() {
        if is_over(&s) {
            ends.push_back(at);
        }
        let mut steps = Vec::new();
        actions::steps(&s, &mut steps);
        let own = steps.len();
        actions::faults(model.config.names, &s, &mut steps);
        for (i, action) in steps.into_iter().enumerate() {
            let Some(next) = model.next_state(&s, action) else { continue };
            let to = *known.entry(fingerprint(&next)).or_insert_with(|| {
                parents.push(Some((at, action)));
                before.push(Vec::new());
                queue.push_back(next);
                parents.len() - 1
            });
            if i < own {
                before[to].push(at);
            }
        }
        at += 1;
    }
    let mut can_end = vec![false; parents.len()];
    while let Some(at) = ends.pop_front() {
        if !std::mem::replace(&mut can_end[at], true) {
            ends.extend(&before[at]);
        }
    }
    let stuck = can_end.iter().position(|can| !can).map(|stuck| {
        let mut path = Vec::new();
        let mut at = stuck;
        while let Some((parent, action)) = parents[at] {
            path.push(action);
            at = parent;
        }
        path.reverse();
        path
    });
    Graph { states: parents.len(), stuck }
}

/// A state by its hash, as stateright knows it too: of a million states, two are taken for one once in ten million
/// times.
fn fingerprint(s: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    s.hash(&mut hasher);
    hasher.finish()
}
