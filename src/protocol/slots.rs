//! Which write of a pod is sent at once, and which waits to be grouped.
//!
//! A pod's writer may have a few statements under way, and each takes a *slot*. A write that finds a free slot is sent
//! alone. Without one it waits, and goes together with the others that wait.
//!
//! A write that is sent alone may have to wait in the server, for the lock of its row. So its slot counts as free after
//! [`ALONE_MOST`]. Even if all slots have lone writes on locked rows, other writes wait no longer for a slot. A group
//! waits for no locked run, and for a key only for a moment. So it has its slot until it ends.

use std::time::Duration;

use super::Moment;

/// For how long a write that is sent alone takes a slot from others: 20 ms. Shorter: on a slow disk more statements are
/// under way, and groups are smaller. Longer: rows that are locked hold the others up for longer.
pub const ALONE_MOST: Duration = Duration::from_millis(20);

/// What a slot is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// One write.
    Alone,
    /// A group of writes.
    Group,
    /// A group of inserts that have keys. It may wait for another transaction's key, so only one is under way at a
    /// time.
    KeyedGroup,
}

/// The statements that are under way.
#[derive(Clone, Debug)]
pub struct Slots {
    most: usize,
    taken: Vec<Slot>,
    last: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    id: u64,
    used_for: Use,
    since: Moment,
}

impl Slot {
    /// When the slot counts as free, if it does so by itself.
    fn lapses_at(&self) -> Option<Moment> {
        (self.used_for == Use::Alone).then(|| self.since + ALONE_MOST)
    }

    fn counts(&self, now: Moment) -> bool {
        self.lapses_at().is_none_or(|at| now < at)
    }
}

impl Slots {
    /// `most` statements at a time.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), taken: Vec::new(), last: 0 }
    }

    /// Whether a slot is free.
    #[must_use]
    pub fn is_free(&self, now: Moment) -> bool {
        self.taken.iter().filter(|slot| slot.counts(now)).count() < self.most
    }

    /// Whether a group of inserts with keys may be sent: none is under way.
    #[must_use]
    pub fn takes_keys(&self) -> bool {
        self.taken.iter().all(|slot| slot.used_for != Use::KeyedGroup)
    }

    /// Takes a slot, if one is free. The number is for [`Slots::give_back`].
    pub fn take(&mut self, used_for: Use, now: Moment) -> Option<u64> {
        if !self.is_free(now) {
            return None;
        }
        self.last += 1;
        self.taken.push(Slot { id: self.last, used_for, since: now });
        Some(self.last)
    }

    /// The statement with this number has ended.
    pub fn give_back(&mut self, id: u64) {
        self.taken.retain(|slot| slot.id != id);
    }

    /// When the next slot counts as free although its statement is under way. `None`: one is free now, or only the end
    /// of a statement frees one.
    #[must_use]
    pub fn free_at(&self, now: Moment) -> Option<Moment> {
        if self.is_free(now) {
            return None;
        }
        self.taken.iter().filter(|slot| slot.counts(now)).filter_map(Slot::lapses_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    #[test]
    fn as_many_statements_as_there_are_slots_are_under_way() {
        let mut slots = Slots::new(2);
        let first = slots.take(Use::Group, at(0)).unwrap();
        assert!(slots.take(Use::Alone, at(0)).is_some());
        assert_eq!(slots.take(Use::Group, at(1)), None);
        slots.give_back(first);
        assert!(slots.take(Use::Group, at(1)).is_some());
    }

    #[test]
    fn a_write_alone_lends_its_slot_after_a_while_and_a_group_does_not() {
        let mut slots = Slots::new(2);
        let alone = slots.take(Use::Alone, at(0)).unwrap();
        let group = slots.take(Use::Group, at(5)).unwrap();
        assert_eq!(slots.free_at(at(6)), Some(at(20)));
        assert_eq!(slots.take(Use::Group, at(19)), None);
        assert!(slots.is_free(at(20)));
        assert_eq!(slots.free_at(at(20)), None, "one is free");
        let other = slots.take(Use::Group, at(20)).unwrap();
        assert_eq!(slots.free_at(at(1000)), None, "only an end frees one");
        assert!(!slots.is_free(at(1000)));
        // The end of the write that lent its slot frees nothing again.
        slots.give_back(alone);
        assert!(!slots.is_free(at(1000)));
        slots.give_back(other);
        slots.give_back(group);
        assert!(slots.is_free(at(1000)));
    }

    #[test]
    fn one_group_with_keys_is_under_way_at_a_time() {
        let mut slots = Slots::new(3);
        let keyed = slots.take(Use::KeyedGroup, at(0)).unwrap();
        assert!(!slots.takes_keys() && slots.is_free(at(0)));
        slots.give_back(keyed);
        assert!(slots.takes_keys());
    }
}
