//! The lanes: the writes that wait, by kind, and which of them a worker takes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{State, Taken, Waiting, Writer};
use crate::id::{Fence, Incarnation, RunId};
use crate::membership::clock;
use crate::protocol::slots::Use;
use crate::runs::NewRun;
use crate::store::grouped::{Checkpoint, Release};
use crate::store::runs::{Ending, Insert, Inserted, Owner};

/// The most writes of one statement: 500. A larger statement takes longer than others should wait. Smaller ones need
/// more commits.
pub(super) const GROUP_MOST: usize = 500;
/// The most bytes of one statement: 1 MiB. A write that is larger is a group of its own.
const GROUP_BYTES: usize = 1 << 20;

/// A run to start. Its owner is `None` for a run that nobody owns.
#[derive(Clone, Debug)]
pub(crate) struct NewStart {
    pub(crate) run_id: RunId,
    pub(crate) owner: Option<Incarnation>,
    pub(crate) new: Arc<NewRun>,
    /// The trace that the run belongs to.
    pub(crate) trace: String,
    /// The reply to an earlier insert was lost. The run may be there.
    pub(crate) is_repeated: bool,
}

impl NewStart {
    /// `floor` is the highest fence that this process was ever given.
    pub(crate) fn insert(&self, floor: Fence) -> Insert<'_> {
        let NewRun { kind, key, input, movable, traceparent: _ } = &*self.new;
        Insert {
            run_id: self.run_id,
            kind,
            key: key.as_deref(),
            input,
            movable: *movable,
            traceparent: &self.trace,
            floor,
        }
    }
}

/// An end to write.
#[derive(Debug)]
pub(super) struct End {
    pub(super) owner: Owner,
    /// The number of the write among those of its attempt.
    pub(super) number: i64,
    pub(super) ending: Arc<Ending>,
    pub(super) seq: Option<i64>,
}

pub(super) type Starts = Lane<NewStart, Inserted>;
pub(super) type Lane<T, A> = VecDeque<Waiting<T, A>>;

/// The writes that wait. Runs with a key have lanes of their own, because an insert of a key may have to wait for
/// another transaction, and others must not wait with it.
#[derive(Default)]
pub(super) struct Lanes {
    last: u64,
    pub(super) starts: Starts,
    pub(super) keyed_starts: Starts,
    pub(super) submits: Starts,
    pub(super) keyed_submits: Starts,
    pub(super) checkpoints: Lane<Checkpoint, bool>,
    pub(super) ends: Lane<End, bool>,
    pub(super) yields: Lane<Release, bool>,
}

/// The writes of one statement. No two are of one attempt: an attempt makes its next write when the call of the one
/// before has ended, and a write whose call has ended is not taken.
pub(super) enum Group {
    /// All of one owner, or all of none.
    Starts(Vec<Waiting<NewStart, Inserted>>),
    Checkpoints(Vec<Waiting<Checkpoint, bool>>),
    Ends(Vec<Waiting<End, bool>>),
    Yields(Vec<Waiting<Release, bool>>),
}

/// Which lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Starts,
    KeyedStarts,
    Submits,
    KeyedSubmits,
    Checkpoints,
    Ends,
    Yields,
}

impl Kind {
    fn used_for(self) -> Use {
        if matches!(self, Self::KeyedStarts | Self::KeyedSubmits) { Use::KeyedGroup } else { Use::Group }
    }
}

fn head<T, A>(lane: &Lane<T, A>) -> Option<u64> {
    lane.front().map(|waiting| waiting.nth)
}

/// Takes the writes at the head of a lane. Those whose callers are gone are dropped.
fn take<T, A>(lane: &mut Lane<T, A>, most: usize, goes_along: impl Fn(&T, &T) -> bool) -> Vec<Waiting<T, A>> {
    let (mut taken, mut bytes): (Vec<Waiting<T, A>>, usize) = (Vec::new(), 0);
    while let Some(next) = lane.front() {
        if next.reply.is_closed() {
            lane.pop_front();
            continue;
        }
        let fits = taken.first().is_none_or(|first| {
            taken.len() < most && bytes + next.bytes <= GROUP_BYTES && goes_along(&first.what, &next.what)
        });
        if !fits {
            break;
        }
        bytes += next.bytes;
        next.is_taken.store(true, Ordering::Relaxed);
        taken.extend(lane.pop_front());
    }
    taken
}

impl Lanes {
    /// The place of the next write among all.
    pub(super) fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn heads(&self) -> [(Kind, Option<u64>); 7] {
        [
            (Kind::Starts, head(&self.starts)),
            (Kind::KeyedStarts, head(&self.keyed_starts)),
            (Kind::Submits, head(&self.submits)),
            (Kind::KeyedSubmits, head(&self.keyed_submits)),
            (Kind::Checkpoints, head(&self.checkpoints)),
            (Kind::Ends, head(&self.ends)),
            (Kind::Yields, head(&self.yields)),
        ]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heads().iter().all(|(_, head)| head.is_none())
    }

    /// The lane whose head has waited longest. `keys`: whether a lane of runs with keys will do.
    pub(super) fn oldest(&self, keys: bool) -> Option<Kind> {
        let heads = self.heads().into_iter().filter(|(kind, _)| keys || kind.used_for() != Use::KeyedGroup);
        heads.filter_map(|(kind, head)| Some((head?, kind))).min_by_key(|(nth, _)| *nth).map(|(_, kind)| kind)
    }

    pub(super) fn of_start(&mut self, owned: bool, keyed: bool) -> &mut Starts {
        match (owned, keyed) {
            (true, false) => &mut self.starts,
            (true, true) => &mut self.keyed_starts,
            (false, false) => &mut self.submits,
            (false, true) => &mut self.keyed_submits,
        }
    }

    fn take(&mut self, kind: Kind, most: usize) -> Group {
        let one_owner = |a: &NewStart, b: &NewStart| a.owner == b.owner;
        match kind {
            Kind::Starts => Group::Starts(take(&mut self.starts, most, one_owner)),
            Kind::KeyedStarts => Group::Starts(take(&mut self.keyed_starts, most, one_owner)),
            Kind::Submits => Group::Starts(take(&mut self.submits, most, one_owner)),
            Kind::KeyedSubmits => Group::Starts(take(&mut self.keyed_submits, most, one_owner)),
            Kind::Checkpoints => Group::Checkpoints(take(&mut self.checkpoints, most, |_, _| true)),
            Kind::Ends => Group::Ends(take(&mut self.ends, most, |_, _| true)),
            Kind::Yields => Group::Yields(take(&mut self.yields, most, |_, _| true)),
        }
    }
}

impl Group {
    fn is_empty(&self) -> bool {
        match self {
            Self::Starts(starts) => starts.is_empty(),
            Self::Checkpoints(checkpoints) => checkpoints.is_empty(),
            Self::Ends(ends) => ends.is_empty(),
            Self::Yields(yields) => yields.is_empty(),
        }
    }
}

impl Writer {
    /// Takes a group, and a slot for it. `None`: nothing waits, or no slot is free.
    pub(super) fn take(self: &Arc<Self>) -> Option<(Group, Taken)> {
        let mut state = self.state();
        let State { lanes, slots, most, is_closed: _ } = &mut *state;
        let now = clock::now();
        if !slots.is_free(now) {
            return None;
        }
        let (group, used_for) = loop {
            let kind = lanes.oldest(slots.takes_keys())?;
            let group = lanes.take(kind, *most);
            // All callers of the lane's head may be gone.
            if !group.is_empty() {
                break (group, kind.used_for());
            }
        };
        let id = slots.take(used_for, now)?;
        let is_wanted = !lanes.is_empty();
        drop(state);
        if is_wanted {
            // Another worker sends the rest now, or when a slot comes free.
            self.wake.notify_one();
        }
        Some((group, Taken { writer: Arc::clone(self), id }))
    }

    /// A group of so many writes took too long, or not.
    pub(super) fn note_pace(&self, writes: usize, was_slow: bool) {
        let mut state = self.state();
        if was_slow {
            state.most = (writes / 2).max(1);
        } else if writes >= state.most / 2 {
            state.most = (state.most * 2).min(GROUP_MOST);
        }
    }
}
