//! The ring of pods, ordered by lock key. Each pod watches its successor.
//!
//! Authority: none. If two pods see the ring differently, a death is found later (by the sweep), but safety is not
//! affected.

use std::collections::BTreeSet;

use crate::id::{Incarnation, LockKey};

/// One pod's place in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPlace {
    /// Its registration.
    pub incarnation: Incarnation,
    /// The key of its liveness lock, which orders the ring.
    pub lock_key: LockKey,
    /// The key of its witness lock.
    pub witness_key: LockKey,
}

/// The first peer after `own` in the ring. Skips the peers in `skip`: their lock is known to be free, so a waiting
/// session would be granted it at once. `None`: no peer is left to watch.
#[must_use]
pub fn successor<'a>(own: LockKey, peers: &'a [RingPlace], skip: &BTreeSet<Incarnation>) -> Option<&'a RingPlace> {
    let candidates = || peers.iter().filter(|p| p.lock_key != own && !skip.contains(&p.incarnation));
    candidates()
        .filter(|p| p.lock_key > own)
        .min_by_key(|p| p.lock_key)
        .or_else(|| candidates().min_by_key(|p| p.lock_key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(key: i64) -> RingPlace {
        RingPlace {
            incarnation: Incarnation::generate(),
            lock_key: key.into(),
            witness_key: key.wrapping_add(1).into(),
        }
    }

    #[test]
    fn the_successor_is_the_next_larger_key_and_wraps_around() {
        let peers = [place(30), place(-5), place(10)];
        let keys = |own: i64, skip: &[usize]| {
            let skip = skip.iter().map(|i| peers[*i].incarnation).collect();
            successor(own.into(), &peers, &skip).map(|p| p.lock_key.get())
        };
        assert_eq!(keys(10, &[]), Some(30));
        assert_eq!(keys(20, &[]), Some(30));
        assert_eq!(keys(30, &[]), Some(-5), "wraps");
        assert_eq!(keys(20, &[0]), Some(-5), "a held peer is passed over");
        assert_eq!(keys(20, &[0, 1, 2]), None, "nobody left");
        assert_eq!(successor(1.into(), &[], &BTreeSet::new()), None, "alone");
    }

    proptest! {
        /// Every pod of a ring is watched by exactly one other, as long as there are two.
        #[test]
        fn everyone_is_watched_exactly_once(keys in proptest::collection::btree_set(any::<i64>(), 2..40)) {
            let ring: Vec<_> = keys.iter().map(|k| place(*k)).collect();
            let mut watched: Vec<_> = ring
                .iter()
                .map(|own| successor(own.lock_key, &ring, &BTreeSet::new()).expect("somebody").lock_key)
                .collect();
            watched.sort_unstable();
            prop_assert_eq!(watched, ring.iter().map(|p| p.lock_key).collect::<Vec<_>>());
        }
    }
}
